// SPDX-License-Identifier: Apache-2.0
//
// The program compress, killed outright at random moments: under the output's name there is nothing
// or the whole checkpoint, and what remains beside it is resumed to the same bytes.
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <filesystem>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>

#include <nlohmann/json.hpp>

#include "llm/compress/short_compression.hpp"
#include "llm/io/temporary.hpp"
#include "support/catch.hpp"

extern char** environ;

namespace ressvd_llm {
namespace {

namespace fs = std::filesystem;
using steady_clock = std::chrono::steady_clock;

pid_t start(std::vector<std::string> words, bool resume, const std::string& errors = "/dev/null") {
  if (resume) words.push_back("--resume");
  std::vector<char*> arguments;
  for (std::string& word : words)
    arguments.push_back(word.data());
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t quiet;
  posix_spawn_file_actions_init(&quiet);
  posix_spawn_file_actions_addopen(&quiet, 1, "/dev/null", 1, 0);
  posix_spawn_file_actions_addopen(&quiet, 2, errors.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  pid_t child = 0;
  const int error =
      posix_spawn(&child, words[0].c_str(), &quiet, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&quiet);
  REQUIRE(error == 0);
  return child;
}

// The exit status of the child; −1 when a signal ended it.
int finish(pid_t child) {
  int status = 0;
  while (::waitpid(child, &status, 0) < 0)
    REQUIRE(errno == EINTR);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

void kill_now(pid_t child) {
  ::kill(child, SIGKILL);
  finish(child);
}

// Waits until the run has begun to write, or has written this file.
void wait_for_output(const fs::path& output, const fs::path& file = "") {
  const auto limit = steady_clock::now() + std::chrono::minutes(1);
  while (!fs::exists(testing::partial_of(output) / file) && !fs::exists(output)) {
    if (steady_clock::now() > limit) FAIL("compress writes nothing");
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
}

std::vector<std::string> compress_command(const fs::path& output,
                                          const std::vector<std::string>& options) {
  std::vector<std::string> command{RESSVD_LLM_PROGRAM,
                                   "compress",
                                   (fs::path(RESSVD_LLM_FIXTURES) / "llama3").string(),
                                   output.string(),
                                   "--ratio=0.4",
                                   "--samples=12",
                                   "--seqlen=16",
                                   "--heldout-samples=4",
                                   "--threads=1"};
  command.insert(command.end(), options.begin(), options.end());
  return command;
}

} // namespace

TEST_CASE("compress killed at random moments leaves nothing or what resumes to the same bytes",
          "[compress][kill]") {
  const llm_test::temporary_directory directory;
  const fs::path killed = directory / "killed";
  const fs::path partial = testing::partial_of(killed);
  const auto command = [](const fs::path& output) {
    return compress_command(output, {"--method=svd-llm", "--update", "--search-samples=4"});
  };
  const fs::path whole = directory / "whole";
  const pid_t uninterrupted = start(command(whole), false);
  wait_for_output(whole);
  const auto began = steady_clock::now();
  REQUIRE(finish(uninterrupted) == 0);
  const std::chrono::duration<double> writing = steady_clock::now() - began;
  const auto expected = llm_test::tree(whole);
  REQUIRE(expected.contains("model.safetensors"));

  std::mt19937_64 random(20);
  std::uniform_real_distribution<double> share(0, 1);
  const auto wait = [&](double part) { std::this_thread::sleep_for(part * writing); };
  int resumable = 0;
  for (int i = 0; i < RESSVD_LLM_KILLS; ++i) {
    INFO("moment " << i);
    pid_t run = start(command(killed), false);
    // One in five may be killed before it writes, the others are not.
    if (i % 5 != 0) wait_for_output(killed);
    if (i == 1) {
      wait_for_output(killed, "journal.json"); // this one leaves something to resume
    } else {
      wait((i + share(random)) / RESSVD_LLM_KILLS); // some of them early, however few there are
    }
    kill_now(run);
    resumable += fs::exists(partial / "journal.json");
    // Every other run is killed a second time, while it resumes.
    if (i % 2 == 1 && !fs::exists(killed)) {
      run = start(command(killed), true);
      wait(share(random));
      kill_now(run);
    }
    if (!fs::exists(killed)) {
      CHECK(finish(start(command(killed), true)) == 0);
    } else if (fs::exists(partial)) {
      // Killed after the output got its name: the next run refuses it and clears what is left.
      CHECK(llm_test::tree(killed) == expected);
      CHECK(finish(start(command(killed), true)) == 2);
    }
    REQUIRE(llm_test::tree(killed) == expected);
    REQUIRE_FALSE(fs::exists(partial));
    fs::remove_all(killed);
  }
  // Most moments lie between the first file and the last.
  CHECK(resumable > 0);
}

TEST_CASE("a run that Ctrl-C or SIGTERM interrupts tells the command that completes it",
          "[compress][kill]") {
  const llm_test::temporary_directory directory;
  const fs::path broken = directory / "broken";
  const auto command = [](const fs::path& output) {
    return compress_command(
        output, {"--method=tempered", "--allocation=sensitivity", "--rounds=2", "--retruncate",
                 "--probe-samples=2", "--json=" + output.string() + ".json"});
  };
  const auto found = [](const fs::path& output) {
    const auto json = nlohmann::json::parse(llm_test::read(output.string() + ".json"));
    return nlohmann::json{json.at("allocation"), json.at("power_curve"), json.at("heldout")};
  };
  const fs::path whole = directory / "whole";
  const pid_t uninterrupted = start(command(whole), false);
  wait_for_output(whole);
  const auto began = steady_clock::now();
  REQUIRE(finish(uninterrupted) == 0);
  const std::chrono::duration<double> running = steady_clock::now() - began;
  const auto expected = llm_test::tree(whole);

  const std::string errors = directory / "errors";
  int interrupted = 0;
  constexpr int moments = (RESSVD_LLM_KILLS + 4) / 5;
  for (int i = 0; i < moments; ++i) {
    INFO("moment " << i);
    const pid_t run = start(command(broken), false, errors);
    wait_for_output(broken);
    std::this_thread::sleep_for((0.1 + 0.9 * i / moments) * running);
    ::kill(run, i % 2 == 0 ? SIGINT : SIGTERM);
    const int status = finish(run);
    const std::string told = llm_test::read(errors);
    INFO(told);
    const std::string before_command = "broken.partial keeps what is done; to go on:\n  ";
    if (const auto at = told.find(before_command); at != told.npos) {
      ++interrupted;
      CHECK(status == 130);
      CHECK_FALSE(fs::exists(broken));
      const std::string resuming = told.substr(at + before_command.size());
      CHECK_THAT(resuming, contains_text(" compress --resume "));
      REQUIRE(finish(start({"/bin/sh", "-c", resuming}, false)) == 0);
    } else {
      // The moment came before the output was begun, or after it was complete.
      CHECK((status == 0 || status == 130 || status == -1));
      if (!fs::exists(broken)) continue;
    }
    REQUIRE(llm_test::tree(broken) == expected);
    CHECK_FALSE(fs::exists(testing::partial_of(broken)));
    if (fs::exists(broken.string() + ".json")) {
      CHECK(found(broken) == found(whole));
      fs::remove(broken.string() + ".json");
    }
    fs::remove_all(broken);
  }
  CHECK(interrupted > 0);
}

} // namespace ressvd_llm
