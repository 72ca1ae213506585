// SPDX-License-Identifier: Apache-2.0
#include "commands/program.hpp"

#include <csignal>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <ressvd/version.hpp>

#include "commands/choices.hpp"
#include "commands/compare.hpp"
#include "commands/compress.hpp"
#include "commands/convert.hpp"
#include "commands/correct.hpp"
#include "commands/generate.hpp"
#include "commands/inspect.hpp"
#include "commands/perplexity.hpp"
#include "commands/refine.hpp"
#include "commands/sample.hpp"
#include "commands/table.hpp"
#include "io/error.hpp"

namespace ressvd_llm {
namespace {

int report(const char* what, int status) {
  std::fprintf(stderr, "ressvd-llm: %s\n", what);
  return status;
}

// A word as a shell reads it.
std::string quoted(const std::string& word) {
  constexpr const char* plain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./=:,+@%";
  if (!word.empty() && word.find_first_not_of(plain) == word.npos) return word;
  std::string text = "'";
  for (const char c : word)
    text += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return text + "'";
}

// The same command, going on from an interrupted run.
std::string resume_command(int argc, const char* const* argv) {
  const std::vector<std::string> words(argv, argv + argc);
  std::string text;
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "--resume") continue;
    text += (i == 0 ? "" : " ") + quoted(words[i]);
    if (i == 1) text += " --resume";
  }
  return text;
}

} // namespace

int run_program(int argc, const char* const* argv) {
  // A file-size limit is then an ordinary write error, like a full disk.
  std::signal(SIGXFSZ, SIG_IGN);

  CLI::App app{"Compresses language models by singular value decomposition", "ressvd-llm"};
  app.set_version_flag("--version", RESSVD_VERSION_STRING);
  app.require_subcommand(1);
  add_compress(app, resume_command(argc, argv));
  add_convert(app);
  add_correct(app);
  add_perplexity(app);
  add_choices(app);
  add_compare(app);
  add_generate(app);
  add_inspect(app);
  add_refine(app);
  add_sample(app);
  add_table(app);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  } catch (const file_error& error) {
    return report(error.what(), 2);
  } catch (const usage_error& error) {
    return report(error.what(), 2);
  } catch (const unmet_request& error) {
    return report(error.what(), 3);
  } catch (const std::invalid_argument& error) {
    return report(error.what(), 2);
  } catch (const std::bad_alloc&) {
    return report("out of memory", 1);
  } catch (const std::exception& error) {
    return report(error.what(), 1);
  }
  return 0;
}

} // namespace ressvd_llm
