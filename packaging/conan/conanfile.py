# SPDX-License-Identifier: Apache-2.0
"""Conan 2 recipe: the headers and their CMake package, from the checkout it lies in."""
import os
import re

from conan import ConanFile
from conan.errors import ConanException
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeDeps, CMakeToolchain, cmake_layout
from conan.tools.files import copy, load, rmdir

required_conan_version = ">=2.0"


class ressvd_recipe(ConanFile):
    name = "ressvd"
    description = "Compression of LLM weight matrices by residual-compensated SVD"
    license = "Apache-2.0"
    topics = ("svd", "low-rank", "llm", "model-compression", "header-only")
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    options = {
        # Check that the CUDA toolkit, which the target ressvd::cuda links, is on this machine.
        "cuda": [True, False],
        # Eigen is the machine's own instead of Conan's package.
        "with_system_eigen": [True, False],
    }
    default_options = {"cuda": False, "with_system_eigen": False}

    @property
    def _root(self):
        return os.path.join(self.recipe_folder, "..", "..")

    def set_version(self):
        header = load(self, os.path.join(self._root, "include", "ressvd", "version.hpp"))
        found = re.search(r'RESSVD_VERSION_STRING "([^"]*)"', header)
        if not found:
            raise ConanException("version.hpp states no RESSVD_VERSION_STRING")
        self.version = found[1]

    def export_sources(self):
        for pattern in ("CMakeLists.txt", "LICENSE", "cmake/*", "include/*", "src/*"):
            copy(self, pattern, self._root, self.export_sources_folder)

    def layout(self):
        self.folders.root = os.path.join("..", "..")
        cmake_layout(self)

    def requirements(self):
        if not self.options.with_system_eigen:
            self.requires("eigen/3.4.0")

    def validate(self):
        check_min_cppstd(self, 20)

    def package_id(self):
        # The headers are the same everywhere; only whether CUDA was found makes a package differ.
        self.info.settings.clear()
        self.info.requires.clear()
        del self.info.options.with_system_eigen

    def generate(self):
        toolchain = CMakeToolchain(self)
        toolchain.user_presets_path = False
        for part in ("COMPILED", "EXAMPLES", "TESTS"):
            toolchain.cache_variables[f"RESSVD_BUILD_{part}"] = False
        toolchain.cache_variables["RESSVD_CUDA"] = "ON" if self.options.cuda else "OFF"
        toolchain.cache_variables["RESSVD_LAPACK"] = "OFF"
        toolchain.cache_variables["CMAKE_REQUIRE_FIND_PACKAGE_Eigen3"] = True  # no download
        toolchain.cache_variables["CMAKE_DISABLE_FIND_PACKAGE_Doxygen"] = True
        toolchain.generate()
        CMakeDeps(self).generate()

    def build(self):
        CMake(self).configure()

    def package(self):
        CMake(self).install()
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))
        rmdir(self, os.path.join(self.package_folder, "share"))

    def package_info(self):
        # find_package finds the library's own package, with the targets and components that it
        # has everywhere else.
        self.cpp_info.set_property("cmake_find_mode", "none")
        self.cpp_info.builddirs = [os.path.join("lib", "cmake", "ressvd")]
        self.cpp_info.bindirs = []
        self.cpp_info.libdirs = []
