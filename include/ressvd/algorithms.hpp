// SPDX-License-Identifier: Apache-2.0
//
// Every kernel and method, over any backend. Neither Eigen nor CUDA.
#pragma once

#include "ressvd/closed_form_update.hpp"
#include "ressvd/core.hpp"
#include "ressvd/gram.hpp"
#include "ressvd/layer_ratio.hpp"
#include "ressvd/low_rank.hpp"
#include "ressvd/methods/adasvd.hpp"
#include "ressvd/methods/asvd.hpp"
#include "ressvd/methods/fwsvd.hpp"
#include "ressvd/methods/ressvd.hpp"
#include "ressvd/methods/svd.hpp"
#include "ressvd/methods/svd_llm.hpp"
#include "ressvd/metric.hpp"
#include "ressvd/probe.hpp"
#include "ressvd/qr_accumulator.hpp"
#include "ressvd/rank_allocation.hpp"
#include "ressvd/refine_allocation.hpp"
#include "ressvd/residual_compensation.hpp"
#include "ressvd/truncated_svd.hpp"
#include "ressvd/truncation_loss.hpp"
#include "ressvd/whitening.hpp"
