# SPDX-License-Identifier: Apache-2.0
# Doxygen's input filter of the pages: examples are linked where the site has them, and pages as a
# whole, since Doxygen before 1.10 names headings in its own way.
s,](\(\.\./\)\?examples/\([0-9a-z_]*\.cpp\)),](@ref \2),g
s,\(\.md\)#[a-z-]*),\1),g
