/* SPDX-License-Identifier: Apache-2.0
 *
 * ressvd for engines that are not written in C++: C11, host memory, opaque handles. The CPU backend
 * in float behind it is that of ressvd::compiled, which a program links (with a C++ linker).
 *
 *   gram         sums X·Xᵀ over batches of activations
 *   calibration  what is known of one input; serves all weights that read it
 *   factored     a weight, factored once for some ranks
 *   matrix       two thin factors U: m × r and V: r × n, or the word that W should stay dense
 *
 * Every function that can fail returns a status; ressvd_message() then has the reason with its
 * numbers, for the calling thread. Outputs are written only where the status is RESSVD_OK. A handle
 * serves one thread at a time, and so do all handles made with one context; it must outlive them.
 * Destroying NULL does nothing. All functions wait until their work is done.
 */
#ifndef RESSVD_H
#define RESSVD_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum ressvd_status {
  RESSVD_OK = 0,
  RESSVD_INVALID_ARGUMENT = 1, /* a call that cannot be carried out as it was made */
  RESSVD_NONFINITE = 2,        /* NaN or infinity in the input */
  RESSVD_INDEFINITE = 3,       /* a Gram that is not positive semidefinite */
  RESSVD_OUT_OF_MEMORY = 4,
  RESSVD_FAILED = 5            /* anything else */
} ressvd_status;

typedef enum ressvd_type {
  RESSVD_FLOAT32 = 0,
  RESSVD_FLOAT64 = 1,
  RESSVD_FLOAT16 = 2,
  RESSVD_BFLOAT16 = 3
} ressvd_type;

/* Element (i, j) is at data[i * ld + j] (row-major) or data[i + j * ld] (column-major). */
typedef enum ressvd_layout { RESSVD_ROW_MAJOR = 0, RESSVD_COL_MAJOR = 1 } ressvd_layout;

/* A matrix in the caller's memory that is read. ld = 0 means packed. */
typedef struct ressvd_view {
  const void* data;
  int64_t rows;
  int64_t cols;
  int64_t ld;
  ressvd_type type;
  ressvd_layout layout;
} ressvd_view;

/* A matrix in the caller's memory that is written. */
typedef struct ressvd_buffer {
  void* data;
  int64_t rows;
  int64_t cols;
  int64_t ld;
  ressvd_type type;
  ressvd_layout layout;
} ressvd_buffer;

typedef struct ressvd_context ressvd_context;
typedef struct ressvd_gram ressvd_gram;
typedef struct ressvd_calibration ressvd_calibration;
typedef struct ressvd_factored ressvd_factored;
typedef struct ressvd_matrix ressvd_matrix;

/* "0.1.0" */
const char* ressvd_version(void);
/* Why the last call of this thread failed; valid until the next one fails. */
const char* ressvd_message(void);

/* Scratch memory and threads. threads = 0: as many as the machine has. */
ressvd_status ressvd_context_create(int threads, ressvd_context** context);
void ressvd_context_destroy(ressvd_context* context);

/* Sums for activations of `features` channels, in double. */
ressvd_status ressvd_gram_create(ressvd_context* context, int64_t features, ressvd_gram** gram);
/* G += X·Xᵀ for a batch of tokens × features. The sums stay as they were where it fails. */
ressvd_status ressvd_gram_add(ressvd_gram* gram, const ressvd_view* batch);
int64_t ressvd_gram_tokens(const ressvd_gram* gram);
/* G itself, features × features, column-major and packed. */
ressvd_status ressvd_gram_read(ressvd_gram* gram, double* values);
void ressvd_gram_destroy(ressvd_gram* gram);

/* Takes the sums over: *gram becomes NULL. At least one token must have been added. */
ressvd_status ressvd_calibration_create(ressvd_gram** gram, ressvd_calibration** calibration);
void ressvd_calibration_destroy(ressvd_calibration* calibration);

typedef struct ressvd_whitening {
  const char* path;        /* "cholesky", "damped cholesky", "eigenvalues" or, for X = 0, "plain" */
  double damping;          /* added to the diagonal of G */
  double relative_damping; /* the same over the mean of the diagonal; 0 when all is well */
  double condition;        /* an estimate for G, infinite for a singular one */
} ressvd_whitening;

/* Makes the whitening factor, unless a weight has done so before, and says how it came about. */
ressvd_status ressvd_whiten(ressvd_calibration* calibration, ressvd_whitening* report);

/* Options of a method; ressvd_default_options() fills all fields. */
typedef struct ressvd_options {
  const char* method;           /* svd, fwsvd, asvd, svd-llm, adasvd, ressvd, tempered, kfac-svd */
  double beta;                  /* ressvd: share of mn/(m+n) that compensates the residual */
  double alpha;                 /* asvd: exponent of the channel means */
  double power;                 /* tempered: power of the Gram */
  const double* row_importance; /* fwsvd: m numbers, or NULL */
  const double* output_curvature; /* kfac-svd: sum of g·gᵀ over the gradients g at W's output, m × m,
                                   * packed, or NULL */
} ressvd_options;

ressvd_options ressvd_default_options(void);

/* Factors W (out × in) once for these ranks. `calibration` may be NULL for svd and fwsvd. */
ressvd_status ressvd_factor(ressvd_context* context, ressvd_calibration* calibration,
                            const ressvd_view* w, const ressvd_options* options,
                            const int64_t* ranks, int64_t rank_count, ressvd_factored** factored);
/* The number of singular values of the weighted matrix, and their values, descending. */
int64_t ressvd_singular_value_count(const ressvd_factored* factored);
ressvd_status ressvd_singular_values(const ressvd_factored* factored, double* values);
void ressvd_factored_destroy(ressvd_factored* factored);

/* What is wanted of a matrix: a ratio (the share of parameters to remove, in [0, 1)) where rank is
 * 0, else two factors of that rank. rank_multiple = 0 or 1: any rank. */
typedef struct ressvd_target {
  double ratio;
  int64_t rank;
  int64_t rank_multiple;
} ressvd_target;

/* The factors of a factored weight. */
ressvd_status ressvd_factored_at(const ressvd_factored* factored, const ressvd_target* target,
                                 ressvd_matrix** matrix);
/* Both in one: factor and cut. */
ressvd_status ressvd_compress(ressvd_context* context, ressvd_calibration* calibration,
                              const ressvd_view* w, const ressvd_options* options,
                              const ressvd_target* target, ressvd_matrix** matrix);
void ressvd_matrix_destroy(ressvd_matrix* matrix);

typedef struct ressvd_report {
  int64_t rows;
  int64_t cols;
  int64_t rank; /* min(rows, cols) when dense */
  int64_t intermediate_rank;
  int dense;                       /* 1: keep W, there are no factors */
  double compression_ratio;        /* negative when the factors cost more than W */
  double weight_loss;              /* ‖W−Ŵ‖² */
  double relative_weight_loss;     /* over ‖W‖² */
  double activation_loss;          /* ‖(W−Ŵ)X‖², NaN where X is not known */
  double relative_activation_loss; /* over ‖WX‖² */
  double seconds;
} ressvd_report;

ressvd_status ressvd_matrix_report(const ressvd_matrix* matrix, ressvd_report* report);
/* Writes the factors, u: m × r and v: r × n, in any type and layout. Either may be NULL. */
ressvd_status ressvd_matrix_export(const ressvd_matrix* matrix, const ressvd_buffer* u,
                                   const ressvd_buffer* v);
/* y = U(Vx) + bias for rows of tokens: x: tokens × n, y: tokens × m, bias: m numbers or NULL. */
ressvd_status ressvd_apply(const ressvd_matrix* matrix, const ressvd_view* x, const float* bias,
                           const ressvd_buffer* y);

/* One matrix of a model, for the choice of all ranks together. */
typedef struct ressvd_allocation_matrix {
  const double* singular_values; /* descending */
  int64_t count;
  int64_t rows;
  int64_t cols;
  double sensitivity; /* loss of the model per unit of truncated energy; infinite: keep dense */
  int64_t rank_multiple;
} ressvd_allocation_matrix;

typedef struct ressvd_rank {
  int64_t rank;
  int dense;
} ressvd_rank;

/* Chooses a rank, or dense, for each of `count` matrices, so that all together keep at most `budget`
 * parameters; loss and loss_bound may be NULL. The least possible loss lies between the two. */
ressvd_status ressvd_allocate_ranks(const ressvd_allocation_matrix* matrices, int64_t count,
                                    int64_t budget, ressvd_rank* ranks, double* loss,
                                    double* loss_bound);

#ifdef __cplusplus
}
#endif

#endif
