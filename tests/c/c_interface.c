/* SPDX-License-Identifier: Apache-2.0
 *
 * The C interface as an engine in C11 uses it, from activations to outputs, and what it says of
 * wrong calls. Returns 0 when all holds. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ressvd/ressvd.h>

static int failures = 0;

#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) {                                                         \
      ++failures;                                                               \
      printf("%s:%d: failed: %s (%s)\n", __FILE__, __LINE__, #condition, ressvd_message()); \
    }                                                                           \
  } while (0)

enum { out = 24, in = 16, tokens = 80, rank = 6 };

static float w[out * in], x[tokens * in], y[tokens * out];
static float u[out * rank], v[rank * in];
static uint16_t u16[out * rank];

/* Deterministic values in (-1, 1). */
static float next_value(void) {
  static uint32_t state = 12345;
  state = state * 1664525u + 1013904223u;
  return (float)(state >> 8) / 8388608.0f - 1.0f;
}

static ressvd_view view_of(const void* data, int64_t rows, int64_t cols) {
  ressvd_view a = {data, rows, cols, 0, RESSVD_FLOAT32, RESSVD_ROW_MAJOR};
  return a;
}
static ressvd_buffer buffer_of(void* data, int64_t rows, int64_t cols) {
  ressvd_buffer a = {data, rows, cols, 0, RESSVD_FLOAT32, RESSVD_ROW_MAJOR};
  return a;
}

/* sum over tokens of |W x - y|^2, and of |W x|^2 */
static void compare_outputs(double* lost, double* total) {
  *lost = *total = 0;
  for (int t = 0; t < tokens; ++t) {
    for (int o = 0; o < out; ++o) {
      double exact = 0;
      for (int i = 0; i < in; ++i) exact += (double)w[o * in + i] * x[t * in + i];
      const double d = exact - y[t * out + o];
      *lost += d * d;
      *total += exact * exact;
    }
  }
}

int main(void) {
  for (int i = 0; i < out * in; ++i) w[i] = next_value();
  for (int i = 0; i < tokens * in; ++i) x[i] = next_value() / (float)(1 + i % in);

  CHECK(strlen(ressvd_version()) >= 5);
  ressvd_context* context = NULL;
  CHECK(ressvd_context_create(1, &context) == RESSVD_OK);

  ressvd_gram* gram = NULL;
  CHECK(ressvd_gram_create(context, in, &gram) == RESSVD_OK);
  const ressvd_view first = view_of(x, tokens / 2, in);
  const ressvd_view second = view_of(x + tokens / 2 * in, tokens / 2, in);
  CHECK(ressvd_gram_add(gram, &first) == RESSVD_OK);
  CHECK(ressvd_gram_add(gram, &second) == RESSVD_OK);
  CHECK(ressvd_gram_tokens(gram) == tokens);
  double g[in * in];
  CHECK(ressvd_gram_read(gram, g) == RESSVD_OK);
  double energy = 0, trace = 0;
  for (int i = 0; i < tokens * in; ++i) energy += (double)x[i] * x[i];
  for (int i = 0; i < in; ++i) trace += g[i * in + i];
  CHECK(fabs(trace - energy) <= 1e-5 * energy);

  /* What a batch may not be: another width, not finite, null. The sums stay. */
  const ressvd_view narrow = view_of(x, 4, in - 1);
  CHECK(ressvd_gram_add(gram, &narrow) == RESSVD_INVALID_ARGUMENT);
  CHECK(strstr(ressvd_message(), "has 15 features, expected 16") != NULL);
  float bad[in] = {0};
  bad[3] = (float)NAN;
  const ressvd_view spoiled = view_of(bad, 1, in);
  CHECK(ressvd_gram_add(gram, &spoiled) == RESSVD_NONFINITE);
  CHECK(ressvd_gram_add(gram, NULL) == RESSVD_INVALID_ARGUMENT);
  CHECK(ressvd_gram_tokens(gram) == tokens);

  ressvd_calibration* input = NULL;
  CHECK(ressvd_calibration_create(&gram, &input) == RESSVD_OK);
  CHECK(gram == NULL);
  ressvd_whitening whitening;
  CHECK(ressvd_whiten(input, &whitening) == RESSVD_OK);
  CHECK(strcmp(whitening.path, "cholesky") == 0);
  CHECK(whitening.damping == 0 && whitening.condition >= 1);

  /* One matrix, one rank; its outputs are those of its factors and lose what the report says. */
  const ressvd_view weights = view_of(w, out, in);
  ressvd_options options = ressvd_default_options();
  CHECK(strcmp(options.method, "ressvd") == 0);
  options.method = "svd-llm";
  const ressvd_target target = {0, rank, 0};
  ressvd_matrix* matrix = NULL;
  CHECK(ressvd_compress(context, input, &weights, &options, &target, &matrix) == RESSVD_OK);
  ressvd_report report;
  CHECK(ressvd_matrix_report(matrix, &report) == RESSVD_OK);
  CHECK(report.rows == out && report.cols == in && report.rank == rank && !report.dense);
  CHECK(fabs(report.compression_ratio - (1 - rank * (out + in) / (double)(out * in))) < 1e-12);
  const ressvd_view all = view_of(x, tokens, in);
  const ressvd_buffer outputs = buffer_of(y, tokens, out);
  CHECK(ressvd_apply(matrix, &all, NULL, &outputs) == RESSVD_OK);
  double lost, total;
  compare_outputs(&lost, &total);
  CHECK(fabs(lost - report.activation_loss) <= 1e-4 * lost);
  CHECK(fabs(lost / total - report.relative_activation_loss) <= 1e-4);

  const ressvd_buffer left = buffer_of(u, out, rank), right = buffer_of(v, rank, in);
  CHECK(ressvd_matrix_export(matrix, &left, &right) == RESSVD_OK);
  double largest = 0;
  for (int t = 0; t < tokens; ++t) {
    for (int o = 0; o < out; ++o) {
      double sum = 0;
      for (int r = 0; r < rank; ++r) {
        double inner = 0;
        for (int i = 0; i < in; ++i) inner += (double)v[r * in + i] * x[t * in + i];
        sum += u[o * rank + r] * inner;
      }
      largest = fmax(largest, fabs(sum - y[t * out + o]));
    }
  }
  CHECK(largest < 1e-4);
  ressvd_buffer half_left = {u16, out, rank, 0, RESSVD_BFLOAT16, RESSVD_COL_MAJOR};
  CHECK(ressvd_matrix_export(matrix, &half_left, NULL) == RESSVD_OK);
  CHECK(u16[0] != 0);
  const ressvd_buffer swapped = buffer_of(u, rank, out);
  CHECK(ressvd_matrix_export(matrix, &swapped, NULL) == RESSVD_INVALID_ARGUMENT);
  CHECK(strstr(ressvd_message(), "u is 6 x 24, expected 24 x 6") != NULL);
  ressvd_matrix_destroy(matrix);
  matrix = NULL;

  /* A bias, and tokens in bfloat16 that are zero. */
  float bias[out];
  for (int o = 0; o < out; ++o) bias[o] = (float)o;
  static uint16_t zeros[tokens * in];
  const ressvd_view still = {zeros, tokens, in, 0, RESSVD_BFLOAT16, RESSVD_ROW_MAJOR};

  /* Factored once for several ranks; the spectrum goes into an allocation. */
  options = ressvd_default_options();
  const int64_t ranks[] = {8, 4, 2};
  ressvd_factored* factored = NULL;
  CHECK(ressvd_factor(context, input, &weights, &options, ranks, 3, &factored) == RESSVD_OK);
  double before = -1;
  for (int i = 0; i < 3; ++i) {
    const ressvd_target wanted = {0, ranks[i], 0};
    CHECK(ressvd_factored_at(factored, &wanted, &matrix) == RESSVD_OK);
    CHECK(ressvd_matrix_report(matrix, &report) == RESSVD_OK);
    CHECK(report.weight_loss > before);
    before = report.weight_loss;
    CHECK(ressvd_apply(matrix, &still, bias, &outputs) == RESSVD_OK);
    CHECK(y[7] == 7.0f && y[tokens * out - 1] == (float)(out - 1));
    ressvd_matrix_destroy(matrix);
    matrix = NULL;
  }
  const int64_t count = ressvd_singular_value_count(factored);
  CHECK(count == in);
  double values[in];
  CHECK(ressvd_singular_values(factored, values) == RESSVD_OK);
  for (int i = 1; i < in; ++i) CHECK(values[i] <= values[i - 1]);
  ressvd_factored_destroy(factored);

  const ressvd_allocation_matrix model[] = {{values, count, out, in, 1.0, 0},
                                            {values, count, out, in, 100.0, 0}};
  ressvd_rank chosen[2];
  double loss, bound;
  CHECK(ressvd_allocate_ranks(model, 2, out * in, chosen, &loss, &bound) == RESSVD_OK);
  CHECK(bound <= loss && loss > 0);
  CHECK(chosen[1].dense || chosen[1].rank >= chosen[0].rank);
  CHECK(ressvd_allocate_ranks(model, 2, 10, chosen, NULL, NULL) == RESSVD_INVALID_ARGUMENT);

  /* Outputs of equal curvature: the problem of svd-llm. */
  const ressvd_target four = {0, 4, 0};
  options.method = "svd-llm";
  CHECK(ressvd_compress(context, input, &weights, &options, &four, &matrix) == RESSVD_OK);
  CHECK(ressvd_matrix_report(matrix, &report) == RESSVD_OK);
  const double whitened = report.activation_loss;
  ressvd_matrix_destroy(matrix);
  matrix = NULL;
  options.method = "kfac-svd";
  CHECK(ressvd_compress(context, input, &weights, &options, &four, &matrix) ==
        RESSVD_INVALID_ARGUMENT);
  CHECK(strstr(ressvd_message(), "needs the curvature") != NULL);
  static double curvature[out * out];
  for (int o = 0; o < out; ++o) curvature[o * out + o] = 3;
  options.output_curvature = curvature;
  CHECK(ressvd_compress(context, input, &weights, &options, &four, &matrix) == RESSVD_OK);
  CHECK(ressvd_matrix_report(matrix, &report) == RESSVD_OK);
  CHECK(fabs(report.activation_loss - whitened) < 1e-3 * whitened);
  ressvd_matrix_destroy(matrix);
  matrix = NULL;
  options = ressvd_default_options();

  /* Nothing to gain: the matrix stays dense and has no factors. */
  const ressvd_target nothing = {0, 0, 0};
  CHECK(ressvd_compress(context, NULL, &weights, &options, &nothing, &matrix) == RESSVD_OK);
  CHECK(ressvd_matrix_report(matrix, &report) == RESSVD_OK);
  CHECK(report.dense && report.weight_loss == 0 && isnan(report.activation_loss));
  CHECK(ressvd_matrix_export(matrix, &left, NULL) == RESSVD_INVALID_ARGUMENT);
  ressvd_matrix_destroy(matrix);
  matrix = NULL;

  /* Wrong calls. */
  CHECK(ressvd_compress(context, NULL, &weights, &options, &target, &matrix) ==
        RESSVD_INVALID_ARGUMENT);
  CHECK(strstr(ressvd_message(), "ResSVD needs the Gram") != NULL);
  options.method = "frob";
  CHECK(ressvd_compress(context, input, &weights, &options, &target, &matrix) ==
        RESSVD_INVALID_ARGUMENT);
  CHECK(strstr(ressvd_message(), "no method 'frob'") != NULL);
  options.method = "svd";
  const ressvd_target too_large = {0, 17, 0}, ratio = {1.5, 0, 0};
  CHECK(ressvd_compress(context, input, &weights, &options, &too_large, &matrix) ==
        RESSVD_INVALID_ARGUMENT);
  CHECK(ressvd_compress(context, input, &weights, &options, &ratio, &matrix) ==
        RESSVD_INVALID_ARGUMENT);
  CHECK(ressvd_compress(NULL, input, &weights, &options, &target, &matrix) ==
        RESSVD_INVALID_ARGUMENT);
  const ressvd_view short_rows = {w, out, in, in - 1, RESSVD_FLOAT32, RESSVD_ROW_MAJOR};
  CHECK(ressvd_compress(context, input, &short_rows, &options, &target, &matrix) ==
        RESSVD_INVALID_ARGUMENT);
  CHECK(matrix == NULL);
  ressvd_gram* empty = NULL;
  ressvd_calibration* none = NULL;
  CHECK(ressvd_gram_create(context, in, &empty) == RESSVD_OK);
  CHECK(ressvd_calibration_create(&empty, &none) == RESSVD_INVALID_ARGUMENT);
  CHECK(empty != NULL && none == NULL);
  CHECK(ressvd_gram_create(context, 0, &empty) == RESSVD_INVALID_ARGUMENT);
  CHECK(ressvd_context_create(-1, &context) == RESSVD_INVALID_ARGUMENT);

  ressvd_gram_destroy(empty);
  ressvd_calibration_destroy(input);
  ressvd_context_destroy(context);
  ressvd_context_destroy(NULL);
  printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
