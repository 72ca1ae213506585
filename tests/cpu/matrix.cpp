// SPDX-License-Identifier: Apache-2.0
#include "ressvd/core/matrix.hpp"

#include <limits>
#include <memory>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include "ressvd/core/matrix_view.hpp"
#include "support/catch.hpp"
#include "support/eigen_backends.hpp"
#include "support/placed.hpp"

namespace {

using ressvd::block;
using ressvd::col_major;
using ressvd::index_t;
using ressvd::layout;
using ressvd::matrix;
using ressvd::matrix_view;
using ressvd::row_major;

template <class T>
T at(const matrix_view<T>& a, index_t i, index_t j) {
  return *a.part(i, j, 1, 1).data;
}

// Memory of one space does not convert to another, and const stays const.
static_assert(!std::is_convertible_v<matrix_view<float, ressvd::cuda_space>, matrix_view<float>>);
static_assert(!std::is_convertible_v<block<float>, block<float, ressvd::cuda_space>>);
static_assert(std::is_convertible_v<matrix_view<float>, matrix_view<const float>>);
static_assert(!std::is_convertible_v<matrix_view<const float>, matrix_view<float>>);
static_assert(std::is_convertible_v<block<float>, block<const float>>);
static_assert(!std::is_convertible_v<block<const float>, block<float>>);
static_assert(std::is_convertible_v<matrix<float>&, block<float>>);
static_assert(!std::is_convertible_v<const matrix<float>&, block<float>>);
static_assert(std::is_convertible_v<const matrix<float>&, block<const float>>);
static_assert(!std::is_copy_constructible_v<matrix<float>>);
static_assert(std::is_nothrow_move_constructible_v<matrix<float>>);

} // namespace

TEST_CASE("views find their elements in either layout", "[matrix]") {
  std::vector<float> memory(60);
  std::iota(memory.begin(), memory.end(), 0.0F);
  for (const auto& view : {row_major(memory.data(), 5, 7), row_major(memory.data(), 5, 7, 11),
                           col_major(memory.data(), 5, 7), col_major(memory.data(), 5, 7, 8)}) {
    const bool by_rows = view.order == layout::row_major;
    CHECK(view.size() == 35);
    CHECK_FALSE(view.empty());
    const auto turned = view.transposed();
    CHECK(turned.rows == 7);
    CHECK(turned.cols == 5);
    const auto inner = view.part(1, 2, 3, 4);
    CHECK(inner.rows == 3);
    CHECK(inner.cols == 4);
    const auto operand = ressvd::as_operand(view);
    for (index_t i = 0; i < 5; ++i) {
      for (index_t j = 0; j < 7; ++j) {
        const auto expected = static_cast<float>(by_rows ? i * view.ld + j : i + j * view.ld);
        CHECK(at(view, i, j) == expected);
        CHECK(at(turned, j, i) == expected);
        if (i >= 1 && i < 4 && j >= 2 && j < 6) CHECK(at(inner, i - 1, j - 2) == expected);
        const bool none = operand.o == ressvd::op::none;
        CHECK(*operand.a.part(none ? i : j, none ? j : i, 1, 1).data == expected);
      }
    }
  }
  CHECK(row_major(memory.data(), 5, 7).ld == 7);
  CHECK(col_major(memory.data(), 5, 7).ld == 5);
  CHECK(row_major(memory.data(), 0, 7).empty());
  CHECK(col_major(memory.data(), 5, 0).empty());
}

TEST_CASE("blocks are cut by columns and rows", "[matrix]") {
  std::vector<double> memory(40);
  std::iota(memory.begin(), memory.end(), 0.0);
  const block<double> a{memory.data(), 4, 5, 8};
  CHECK(a.left_cols(2).cols == 2);
  CHECK(a.col_range(3, 2).data == memory.data() + 24);
  CHECK(a.top_rows(3).rows == 3);
  CHECK(a.top_rows(3).cols == 5);
  CHECK(*a.part(2, 3, 1, 1).data == 26);
  const auto view = a.view();
  CHECK(view.order == layout::col_major);
  CHECK(view.ld == 8);
  CHECK(at(view, 2, 3) == 26);
}

TEST_CASE("a matrix owns its memory and hands it on when moved", "[matrix]") {
  int released = 0;
  {
    matrix<float> a(std::shared_ptr<float[]>(new float[6],
                                             [&](const float* p) {
                                               ++released;
                                               delete[] p;
                                             }),
                    2, 3);
    float* data = a.data();
    matrix<float> b(std::move(a));
    CHECK(b.data() == data);
    CHECK(b.rows() == 2);
    CHECK(b.cols() == 3);
    CHECK(b.ref().ld == 2);
    matrix<float> c;
    CHECK(c.empty());
    c = std::move(b);
    CHECK(c.data() == data);
    CHECK(released == 0);
    c = matrix<float>();
    CHECK(released == 1);
  }
  CHECK(released == 1);
}

TEMPLATE_LIST_TEST_CASE("a refused call leaves the workspace as it was", "[matrix]",
                        test_backends) {
  using namespace support;
  using T = typename TestType::scalar;
  TestType be;
  auto frame = be.frame();
  const auto mine = be.scratch(6, 6);
  be.fill(mine, T{1});
  const auto before = be.context()->scratch.mark();
  const placed<T, TestType> w(be, random_normal(20, 30, 1));
  dense infinite(30, 1, 1.0);
  infinite(4, 0) = std::numeric_limits<double>::infinity();
  const placed<double, TestType> d(be, infinite);
  CHECK_THROWS_AS(ressvd::truncated_svd(be, w.view(), {}, ressvd::metric<>::diagonal(d.block()), 3),
                  ressvd::nonfinite_error);
  CHECK_THROWS_AS(ressvd::truncated_svd(be, w.view(), {}, {}, 21), std::invalid_argument);
  dense spoiled = identity(30);
  spoiled(20, 10) = std::numeric_limits<double>::infinity(); // seen in its product with W only
  const placed<double, TestType> l(be, spoiled);
  CHECK_THROWS_WITH(
      ressvd::truncated_svd(be, w.view(), {}, ressvd::metric<>::triangular(l.block()), 3),
      contains_text("a metric's factor has a non-finite element or is too large"));
  CHECK(be.context()->scratch.mark().used == before.used);
  CHECK(values_of(be, mine) == dense(6, 6, 1.0));
}

TEST_CASE("a part outside of a view is refused with the numbers", "[matrix]") {
  std::vector<float> values(12);
  for (const auto view : {row_major(values.data(), 3, 4), col_major(values.data(), 3, 4)}) {
    CHECK_NOTHROW(view.part(0, 0, 3, 4));
    CHECK_NOTHROW(view.part(3, 4, 0, 0));
    CHECK_THROWS_WITH(view.part(1, 0, 3, 4),
                      contains_text("a part of 3 x 4 at (1, 0) is not within a matrix of 3 x 4"));
    CHECK_THROWS_AS(view.part(0, 2, 1, 3), std::invalid_argument);
    CHECK_THROWS_AS(view.part(-1, 0, 1, 1), std::invalid_argument);
    CHECK_THROWS_AS(view.part(0, 0, 1, -1), std::invalid_argument);
    CHECK_THROWS_AS(view.part(0, 0, std::numeric_limits<index_t>::max(), 1), std::invalid_argument);
  }
}

TEST_CASE("a backend refuses a null context", "[matrix]") {
  CHECK_THROWS_WITH(ressvd::eigen_backend<float>(std::shared_ptr<ressvd::host_context>()),
                    contains_text("null context"));
}
