// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "model/device.hpp"

namespace CLI {
class App;
}

namespace ressvd_llm {

// --backend, which is automatic unless it is given, and what it is on a card: --device-memory,
// --precision, --kernel-cache.
void add_device_options(CLI::App& command, backend_choice& backend, device_options& options);

} // namespace ressvd_llm
