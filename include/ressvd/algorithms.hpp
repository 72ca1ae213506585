// SPDX-License-Identifier: Apache-2.0
//
// Every kernel and method, without a backend: bring your own, or include one from backend/.
// Includes neither Eigen nor CUDA.
#pragma once

#include "ressvd/core.hpp"
#include "ressvd/layer_ratio/importance.hpp"
#include "ressvd/layer_ratio/last_layers.hpp"
#include "ressvd/layer_ratio/probe.hpp"
#include "ressvd/layer_ratio/rank_allocation.hpp"
#include "ressvd/layer_ratio/rank_choice.hpp"
#include "ressvd/layer_ratio/refine_allocation.hpp"
#include "ressvd/methods/any_method.hpp"
#include "ressvd/methods/calibration.hpp"
#include "ressvd/methods/shifted_input.hpp"
#include "ressvd/refinement/adamw.hpp"
#include "ressvd/residual/closed_form_update.hpp"
#include "ressvd/residual/losses.hpp"
#include "ressvd/residual/residual_compensation.hpp"
#include "ressvd/truncated_svd/low_rank.hpp"
#include "ressvd/truncated_svd/pivoted_pair.hpp"
#include "ressvd/truncated_svd/truncated_svd.hpp"
#include "ressvd/whitening/gram.hpp"
#include "ressvd/whitening/metric.hpp"
#include "ressvd/whitening/qr_accumulator.hpp"
#include "ressvd/whitening/whitening.hpp"
