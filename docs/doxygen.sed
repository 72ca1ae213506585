# SPDX-License-Identifier: Apache-2.0
# Doxygen's input filter (GNU sed). The opening comment of a header, with its formulas and tables,
# becomes the description of the file as it stands.
1,/^#pragma once/ {
  s,^// SPDX.*,/*! \\file\n\\verbatim,
  s,^// \?,,
  s,^#pragma once,\\endverbatim */\n#pragma once,
}
