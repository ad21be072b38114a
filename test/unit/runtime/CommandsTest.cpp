// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-runtime/Commands.h"
#include "test/unit/runtime/TestArtifact.h"

#include <gtest/gtest.h>

#include <csignal>
#include <fstream>
#include <regex>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

using namespace sluice::runtime;
using namespace sluice::runtime::test;
using nlohmann::json;

namespace {

struct Outcome {
  int status;
  std::string out, err;
};

class SluiceRun : public testing::Test {
protected:
  SluiceRun() : artifact((directory.path() / "letters.sluice").string()) {
    std::filesystem::create_directory(artifact);
    TestArtifact().write(artifact);
  }

  /// Runs the program through the shell: `arguments` may have redirections, {} is the artifact.
  Outcome run(std::string arguments, const std::string &before = "") {
    for (size_t at; (at = arguments.find("{}")) != std::string::npos;)
      arguments.replace(at, 2, artifact);
    std::string out = (directory.path() / "out").string(),
                err = (directory.path() / "err").string();
    std::string command =
        "{ " + before + SLUICE_TEST_RUN " " + arguments + "; } > " + out + " 2> " + err;
    int status = std::system(("bash -c '" + command + "'").c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, readFile(out), readFile(err)};
  }
  void expectError(const Outcome &outcome, int status, const std::string &words) {
    EXPECT_EQ(outcome.status, status);
    EXPECT_EQ(outcome.out, "");
    EXPECT_EQ(outcome.err.rfind("sluice: error: ", 0), 0u) << outcome.err;
    EXPECT_NE(outcome.err.find(words), std::string::npos) << outcome.err;
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
  }

  TemporaryDirectory directory;
  std::string artifact;
};

TEST_F(SluiceRun, PrintsPromptAndText) {
  Outcome outcome = run("run {} -p abc -n 3 --temp 0");
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(outcome.out, "abcdef\n");
  EXPECT_EQ(outcome.err, "");
  EXPECT_EQ(run("run {} -p abc -n 3 --temp 0 --no-echo --threads 3").out, "def\n");
  EXPECT_EQ(run("run {} -p abc --temp 0 --stop zz --stop hi").out, "abcdefg\n");
  EXPECT_EQ(run("run {} -p w --temp 0 -n -1").out, "wxyz\n");
}

TEST_F(SluiceRun, PrintsTokenIdsAndNothingElse) {
  EXPECT_EQ(run("run {} -p abc -n 3 --temp 0 --token-ids").out, "1 4 5 6 7 8 9\n");
  EXPECT_EQ(run("run {} -p abc -n 0 --token-ids --no-bos").out, "4 5 6\n");
  EXPECT_EQ(run("run {} -p abc -n 3 --temp 0 --token-ids --no-echo").out, "7 8 9\n");
  EXPECT_EQ(run("run {} -p \"a</s>\" -n 0 --token-ids --special").out, "1 4 2\n");
}

TEST_F(SluiceRun, ReadsThePromptFromElsewhere) {
  EXPECT_EQ(run("run {} -p - -n 2 --temp 0", "echo mn | ").out, "mnop\n");
  writeFile(directory.path() / "prompt", "rs");
  EXPECT_EQ(run("run {} -f " + (directory.path() / "prompt").string() + " -n 2 --temp 0").out,
            "rstu\n");
}

TEST_F(SluiceRun, AnswersOnce) {
  std::string file = (directory.path() / "t.jinja").string();
  writeFile(file,
            "{{ bos_token }}{% for m in messages %}{{ m.role[0] }}{{ m.content }}{% endfor %}");
  std::string chat = "run {} --chat --temp 0 --chat-template " + file;
  EXPECT_EQ(run(chat + " -p v").out, "wxyz\n");
  EXPECT_EQ(run(chat + " -p v -n 2").out, "wx\n");
  EXPECT_EQ(run(chat + " -p v -n 2 --token-ids").out, "1 24 25 26 27\n");
  EXPECT_EQ(run(chat + " -p v -n 0 --token-ids --system ab").out, "1 22 4 5 24 25\n");
  // What the user says may name control tokens.
  EXPECT_EQ(run(chat + " -p \"</s>v\" -n 0 --token-ids").out, "1 24 2 25\n");
  EXPECT_EQ(run(chat + " -p -", "echo v | ").out, "wxyz\n");

  expectError(run("run {} --chat -p v"), 1, "letters.sluice: the model has no chat template");
  expectError(run("run {} -p v --system a"), 2, "--chat");
  expectError(run("run {} -p v --chat-template " + file), 2, "--chat");
  expectError(run(chat + " -p v --no-bos"), 2, "--no-bos");
  expectError(run(chat + "x -p v"), 1, "t.jinjax: cannot be read");
  writeFile(file, "a\n{% if %}");
  expectError(run(chat + " -p v"), 1, "t.jinja: line 2: found");
  writeFile(file, "{{ raise_exception(1) }}");
  expectError(run(chat + " -p v"), 1, "t.jinja: line 1: the template refuses the conversation: 1");
}

TEST_F(SluiceRun, Chats) {
  std::string file = (directory.path() / "t.jinja").string();
  writeFile(file,
            "{% for m in messages %}{{ 'u' if m.role == 'user' }}{{ m.content }}{% endfor %}");
  std::string chat = "chat {} --temp 0 --chat-template " + file;
  EXPECT_EQ(run(chat, "printf \"v\\nw\\n\" | ").out, "wxyz\nxyz\n");
  // No line end, other line ends, empty lines.
  EXPECT_EQ(run(chat, "printf \"v\\r\\n\\n\\r\\nx\" | ").out, "wxyz\nyz\n");
  EXPECT_EQ(run(chat, "printf \"v\\n/quit\\nw\\n\" | ").out, "wxyz\n");
  EXPECT_EQ(run(chat, "printf \"\" | ").out, "");
  EXPECT_EQ(run(chat + " -n 2 --stop x", "printf \"a\\nv\\n\" | ").out, "bc\nw\n");
  EXPECT_EQ(run(chat, "printf \"v\\nw\\n\" | ").err, "");

  // A turn that fails is told, and the others go on.
  std::string tooLong(60, 'a');
  Outcome outcome = run(chat, "printf \"" + tooLong + "\\nw\\n\" | ");
  EXPECT_EQ(outcome.status, 1);
  EXPECT_EQ(outcome.out, "xyz\n");
  EXPECT_EQ(outcome.err, "sluice: error: the conversation has 61 tokens, which is more than the "
                         "context of 48; start a new one, or compile the model with a longer "
                         "context (--context)\n");
  // Three turns fill the context; /reset makes room.
  std::string turns = "abcdefgh\\n";
  outcome = run(chat + " -n 5", "printf \"" + turns + turns + turns + turns + turns + "\" | ");
  EXPECT_EQ(outcome.status, 1);
  EXPECT_EQ(outcome.out, "ijklm\nijklm\nijklm\n");
  EXPECT_EQ(run(chat + " -n 5",
                "printf \"" + turns + turns + turns + "/reset\\n" + turns + turns + "\" | ")
                .status,
            0);
  outcome = run(chat, "printf \"" + turns + turns + turns + "\" | ");
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find("/reset starts a new conversation"), std::string::npos) << outcome.err;

  expectError(run("chat {}", "echo v | "), 1, "letters.sluice: the model has no chat template");
  expectError(run("chat /nonexistent", "echo v | "), 1, "there is no such directory");
  expectError(run(chat + " --top-p 7", "echo v | "), 1, "top-p");
}

TEST_F(SluiceRun, Tokenizes) {
  EXPECT_EQ(run("tokenize {} abz --ids").out, "1 4 5 29\n");
  EXPECT_EQ(run("tokenize {} --ids --no-bos", "printf ab | ").out, "4 5\n");
  EXPECT_EQ(run("tokenize {} \"a b\" --no-bos").out,
            "      4  \"a\"\n      3  \"\u2581\"\n      5  \"b\"\n");
  EXPECT_EQ(run("tokenize {}/tokenizer.json abz --ids").out, "1 4 5 29\n");
}

TEST_F(SluiceRun, MeasuresPerplexity) {
  writeFile(directory.path() / "text", "abcdeffghijklmaopqrstuvwxyzabzdefg");
  Outcome outcome = run("perplexity {} -f " + (directory.path() / "text").string() + " -c 10");
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(outcome.err, "");
  EXPECT_EQ(outcome.out.rfind("3 windows of 10 tokens, 12 tokens scored\n", 0), 0u) << outcome.out;
  std::string last = outcome.out.substr(outcome.out.rfind("perplexity: "));
  EXPECT_EQ(last.size(), outcome.out.size() - outcome.out.rfind("perplexity: "));
  double value = std::stod(last.substr(12));
  EXPECT_EQ(last, "perplexity: " + last.substr(12, last.size() - 13) + "\n");
  EXPECT_EQ(last.size() - last.find('.'), 6u) << "four decimals and a line end";
  TestArtifact().write(artifact);
  Session session(Artifact::open(artifact));
  std::vector<int32_t> ids =
      session.artifact().tokenizer().encode("abcdeffghijklmaopqrstuvwxyzabzdefg", true);
  EXPECT_NEAR(value, perplexity(session, ids, 1, {10, 0}).perplexity, 1e-4);
}

TEST_F(SluiceRun, MeasuresTheDivergenceFromAReference) {
  writeFile(directory.path() / "text", "abcdeffghijklmaopqrstuvwxyzabzdefg");
  std::string command = "perplexity {} -f " + (directory.path() / "text").string() + " -c 10 ";
  std::string alone = run(command).out;
  size_t second = alone.find('\n') + 1;
  Outcome outcome = run(command + "--against {}");
  EXPECT_EQ(outcome.err, "");
  EXPECT_EQ(outcome.out, alone.substr(0, second) +
                             "kl divergence: 0.00000 +- 0.00000 nats\n"
                             "same first choice: 100.00%\n" +
                             alone.substr(second));

  std::filesystem::path other = directory.path() / "other.sluice";
  std::filesystem::create_directory(other);
  TestArtifact made;
  // Of the scored tokens one is a "g".
  made.setNext(TestArtifact::letterA + 6, TestArtifact::letterA);
  made.write(other);
  auto lines = [&](const std::string &output) {
    return output.substr(second, output.size() - alone.size());
  };
  outcome = run(command + "--against " + other.string());
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_TRUE(std::regex_match(lines(outcome.out),
                               std::regex("kl divergence: 0\\.[0-9]{5} \\+- 0\\.[0-9]{5} nats\n"
                                          "same first choice: 91\\.67%\n")))
      << outcome.out;
  // A small divergence gets as many decimals as its error needs.
  TestArtifact close;
  close.setBias(100, 101);
  // More where it is the token that comes next, so that there is a spread.
  close.setBias(TestArtifact::letterA + 5, TestArtifact::letterA + 6);
  close.write(other);
  outcome = run(command + "--against " + other.string());
  std::smatch match;
  std::string found = lines(outcome.out);
  ASSERT_TRUE(std::regex_search(found, match,
                                std::regex("^kl divergence: 0\\.([0-9]*[1-9][0-9]*) \\+- "
                                           "0\\.(0{5,}[1-9][0-9]) nats\n"
                                           "same first choice: 100\\.00%\n$")))
      << outcome.out;
  EXPECT_EQ(match[1].length(), match[2].length());
}

TEST_F(SluiceRun, AReferenceMayRunElsewhere) {
  writeFile(directory.path() / "text", "abcdeffghijklmaopqrstuvwxyzabzdefg");
  std::filesystem::path gpu = directory.path() / "gpu.sluice";
  std::filesystem::create_directory(gpu);
  TestArtifact made;
  made.retargetToGpu();
  made.write(gpu);
  std::string file = " -c 10 -f " + (directory.path() / "text").string(),
              driver = "export SLUICE_LIBCUDA=" SLUICE_TEST_FAKE_CUDA "; ";
  const std::string expected = "\nkl divergence: 0.00000 +- 0.00000 nats\n";
  // Both on the same GPU, and either of them there.
  for (const std::string &models :
       {gpu.string() + " --against " + gpu.string(), gpu.string() + " --against {}",
        "{} --against " + gpu.string(),
        "{} --device cpu --against-device cuda --against " + gpu.string()}) {
    Outcome outcome = run("perplexity " + models + file, driver);
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    EXPECT_NE(outcome.out.find(expected), std::string::npos) << models << "\n" << outcome.out;
  }
  // As --device says, where nothing else does.
  expectError(run("perplexity {} --device cpu --against " + gpu.string() + file, driver), 1, "cpu");
}

TEST_F(SluiceRun, AReferenceHasTheSameTokens) {
  writeFile(directory.path() / "text", "abcdeffghijklmaopqrstuvwxyzabzdefg");
  std::string file = " -c 10 -f " + (directory.path() / "text").string();
  std::filesystem::path other = directory.path() / "other.sluice";
  std::filesystem::create_directory(other);
  std::string against = "perplexity {} --against " + other.string() + file;
  TestArtifact(3).write(other);
  expectError(run(against), 1,
              "--against: the vocabulary has 289 tokens, expected the model's 286");
  // "c" and "d" change places.
  TestArtifact swapped;
  size_t c = swapped.tokenizer.find("\"c\""), d = swapped.tokenizer.find("\"d\"");
  ASSERT_NE(c, std::string::npos);
  std::swap(swapped.tokenizer[c + 1], swapped.tokenizer[d + 1]);
  swapped.write(other);
  expectError(run(against), 1,
              "--against: the tokenizer is another: token 3 of the text is 7 \"c\", expected the "
              "model's 6 \"c\"");
  // No token for the beginning of a text.
  TestArtifact bare;
  json tokenizer = json::parse(bare.tokenizer);
  ASSERT_TRUE(tokenizer["add_bos"].get<bool>());
  tokenizer["add_bos"] = false;
  bare.tokenizer = tokenizer.dump();
  bare.write(other);
  expectError(run(against), 1, "--against: the tokenizer is another: token 0 of the text is 4");
  expectError(run("perplexity {} --against /no-such-folder" + file), 1,
              "--against /no-such-folder: there is no such directory");
  expectError(run("perplexity {} --against-device cpu" + file), 2, "--against");
}

TEST_F(SluiceRun, Benches) {
  Outcome outcome = run("bench {} --context 20 -n 50 --repeat 2 --per-kernel --json");
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  json result = json::parse(outcome.out);
  uint64_t vocab = static_cast<uint64_t>(TestArtifact().vocabSize());
  EXPECT_EQ(result["bytes_per_token"], vocab * 9 + 4 + 20 * 128);
  EXPECT_GT(result["tokens_per_second"].get<double>(), 10);
  EXPECT_GT(result["read_bandwidth"]["bytes_per_second"].get<double>(), 1e8);
  EXPECT_NEAR(result["share"].get<double>(),
              result["bytes_per_second"].get<double>() /
                  result["read_bandwidth"]["bytes_per_second"].get<double>(),
              1e-9);
  ASSERT_EQ(result["kernels"].size(), 3u + 2 * TestArtifact::rotations);
  EXPECT_EQ(result["kernels"][0]["label"], "embed");
  outcome = run("bench {} -n 20 --repeat 1 --per-kernel");
  EXPECT_NE(outcome.out.find("context         48 positions"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("\nsum "), std::string::npos) << outcome.out;
}

TEST_F(SluiceRun, BenchSaysHowTokensWereChosen) {
  auto bench = [&](const std::string &options) {
    Outcome outcome = run("bench {} -n 5 --repeat 1 --json " + options);
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    return json::parse(outcome.out);
  };
  json result = bench("");
  EXPECT_EQ(result["sampling"], "greedy");
  EXPECT_EQ(result["sampled_in_step"], false);
  EXPECT_EQ(result["starts_ahead"], false);
  EXPECT_EQ(result["memory"]["keys_and_values"], TestArtifact::context * TestArtifact::hidden * 4);
  EXPECT_EQ(result["memory"]["intermediate_results"], 384);
  // Other options are those of `run`, with its defaults.
  EXPECT_EQ(bench("--temp 0.8")["sampling"], "temperature 0.8, top-k 40, top-p 0.95, min-p 0.05");
  EXPECT_EQ(bench("--temp 2 --top-k 0 --top-p 1 --min-p 0 --seed 3")["sampling"], "temperature 2");
  EXPECT_EQ(bench("--top-k 5 --repeat-penalty 1.5")["sampling"], "greedy, repeat-penalty 1.5");
  TestArtifact sampling;
  sampling.addSampling();
  sampling.write(artifact);
  EXPECT_EQ(bench("--temp 0.8")["sampled_in_step"], true);
  EXPECT_EQ(bench("--repeat-penalty 1.5")["sampled_in_step"], false);
  EXPECT_EQ(bench("--repeat-penalty 1.5 --repeat-window 0")["sampled_in_step"], true);
  Outcome outcome = run("bench {} -n 5 --repeat 1 --temp 1.5 --min-p 0");
  EXPECT_NE(
      outcome.out.find("\nsampling        temperature 1.5, top-k 40, top-p 0.95, in the step\n"
                       "steps           each starts when the host knows its token\nspeed "),
      std::string::npos)
      << outcome.out;
  EXPECT_NE(outcome.out.find("\nmemory          weights 38.0 kB, keys and values of 48 positions "
                             "6.14 kB, intermediate results 384 B\n"),
            std::string::npos)
      << outcome.out;
}

TEST_F(SluiceRun, HelpIsNotAnError) {
  for (const char *command : {"", "run ", "perplexity ", "tokenize ", "bench "}) {
    Outcome outcome = run(std::string(command) + "--help");
    EXPECT_EQ(outcome.status, 0) << command;
    EXPECT_NE(outcome.out.find("Usage: sluice-run"), std::string::npos) << outcome.out;
  }
  EXPECT_EQ(run("").status, 0);
  EXPECT_EQ(run("").out, run("--help").out);
  EXPECT_EQ(run("--version").out.rfind("sluice-run ", 0), 0u);
}

TEST_F(SluiceRun, ErrorsAreOneLine) {
  expectError(run("fly"), 2, "no command \"fly\"");
  expectError(run("run"), 2, "MODEL is required (see sluice-run run --help)");
  expectError(run("run {} --fly -p a"), 2, "--fly");
  expectError(run("run {} -p a -n many"), 2, "many");
  expectError(run("run {}"), 1, "--prompt or --file");
  expectError(run("run /no-such-folder"), 1, "/no-such-folder: there is no such directory");
  expectError(run("tokenize /no-such-folder"), 1, "/no-such-folder: there is no such directory");
  expectError(run("perplexity /no-such-folder -f /nor-this"), 1, "/no-such-folder: there is no");
  expectError(run("run {} -p a -n -2"), 1, "the number of new tokens is -2");
  expectError(run("perplexity {} -f {}/plan.json -c 3"), 2, "--context");
  expectError(run("run {} -p a --top-p 3"), 1, "top-p");
  expectError(run("run {} -p a --device npu"), 1, "device \"npu\" is not available");
  expectError(run("run /no-such-folder -p a"), 1, "/no-such-folder: there is no such directory");
  expectError(run("run {} -f /no-such-folder"), 1, "/no-such-folder: cannot be read: No such file");
  expectError(run("run {} -p \"\" --no-bos"), 1, "no tokens");
  expectError(run("run {} -p aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"), 1, "context");
  expectError(run("perplexity {} -f /no-such-folder"), 1, "/no-such-folder");
  expectError(run("perplexity {} -f {}/plan.json -c 512"), 1, "window is 512 tokens");
  expectError(run("bench {} --context 49"), 1, "49");
  expectError(run("bench {} --temp -1"), 1, "sampling option temperature is -1");
  expectError(run("bench {} --top-p 3"), 1, "top-p");
  expectError(run("run {} -p a > /dev/full"), 1, "No space left on device");
  expectError(run("perplexity {} -f {}"), 1, "cannot be read: Is a directory");
}

TEST_F(SluiceRun, NumbersAreWholeAndFit) {
  expectError(run("run {} -p a -n \"\""), 2, "--tokens: must not be empty");
  expectError(run("run {} -p a -n 99999999999999999999"), 2,
              "--tokens: 99999999999999999999 does not fit in 64 bits");
  expectError(run("run {} -p a -n 1_000"), 2, "--tokens: \"1_000\" is not a whole number");
  expectError(run("run {} -p a --seed -1"), 2, "--seed: \"-1\" is not a whole number");
  expectError(run("run {} -p a --seed 18446744073709551616"), 2, "does not fit in 64 bits");
  expectError(run("run {} -p a --top-k 4294967296"), 2, "--top-k");
  expectError(run("run {} -p a --temp 1e39"), 2, "--temp: 1e39 does not fit in a float");
  expectError(run("run {} -p a --temp nan"), 2, "--temp: \"nan\" is not a finite number");
  expectError(run("run {} -p a --top-p \"\""), 2, "--top-p: must not be empty");
  expectError(run("run {} -p a --device \"\""), 2, "--device: must not be empty");
  expectError(run("run \"\" -p a"), 2, "MODEL: must not be empty");
  expectError(run("bench {} --repeat 99999999999999999999"), 2, "--repeat: 9999999999999999999");
  expectError(run("bench {} --context \"\""), 2, "--context: must not be empty");
  // Not octal.
  EXPECT_EQ(run("run {} -p abc -n 010 --temp 0").out, "abcdefghijklm\n");
  EXPECT_EQ(run("run {} -p abc -n +3 --temp 0 --seed 18446744073709551615").out, "abcdef\n");
  // A text may be empty.
  EXPECT_EQ(run("run {} -p \"\" -n 0 --token-ids").out, "1\n");
}

TEST_F(SluiceRun, AClosedPipeIsQuiet) {
  Outcome outcome = run("run {} -p a -n 40 --temp 0 | true; exit ${PIPESTATUS[0]}");
  EXPECT_EQ(outcome.err, "");
  // Either the reader was gone, or everything had been written before.
  EXPECT_TRUE(outcome.status == 141 || outcome.status == 0) << outcome.status;
  outcome = run("perplexity {} -f {}/plan.json -c 20 | true; exit ${PIPESTATUS[0]}");
  EXPECT_EQ(outcome.err, "");
  EXPECT_EQ(outcome.status, 141);
}

/// Whether a process has a handler for a signal.
static bool handles(pid_t process, int signal) {
  std::ifstream status("/proc/" + std::to_string(process) + "/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("SigCgt:"))
      return std::stoull(line.substr(7), nullptr, 16) >> (signal - 1) & 1;
  return false;
}

TEST_F(SluiceRun, CtrlCEndsCleanly) {
  std::string text;
  for (int i = 0; i < 2'000'000; ++i)
    text += static_cast<char>('a' + i % 26);
  writeFile(directory.path() / "text", text);
  pid_t child = fork();
  if (child == 0) {
    std::freopen("/dev/null", "w", stdout);
    std::string file = (directory.path() / "text").string();
    execl(SLUICE_TEST_RUN, "sluice-run", "perplexity", artifact.c_str(), "-f", file.c_str(), "-c",
          "48", nullptr);
    _exit(99);
  }
  ASSERT_GT(child, 0);
  // How long a program takes to start depends on the build and on the machine.
  int status = 0;
  while (!handles(child, SIGINT)) {
    ASSERT_EQ(waitpid(child, &status, WNOHANG), 0) << "ended before it was interrupted";
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  kill(child, SIGINT);
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status)) << "ended by signal " << WTERMSIG(status);
  EXPECT_EQ(WEXITSTATUS(status), 130);
}

TEST(Commands, TheHookKnowsTheReference) {
  TemporaryDirectory directory;
  TestArtifact().write(directory.path());
  writeFile(directory.path() / "text", "abcdefghijklmnopqrstuvwxyz");
  std::vector<std::string> seen;
  CommandHooks hooks;
  hooks.resolve = [&](const std::string &model, const CompileHints &hints) {
    seen.push_back(model + " on " + hints.device + ", " + std::to_string(hints.context) +
                   (hints.isReference ? ", the reference" : ""));
    return directory.path();
  };
  CLI::App app("test", "test");
  addPerplexityCommand(app, hooks);
  std::string file = (directory.path() / "text").string();
  std::string model = (directory.path() / "model.gguf").string();
  writeFile(model, "");
  const char *arguments[] = {
      "test", "perplexity", model.c_str(), "--against", file.c_str(), "-f", file.c_str(),
      "-c",   "12",         "--device",    "cpu",       "--windows",  "1"};
  testing::internal::CaptureStdout();
  int status = runCommandLine(app, std::size(arguments), arguments);
  std::string out = testing::internal::GetCapturedStdout();
  EXPECT_EQ(status, 0);
  EXPECT_EQ(out.rfind("1 windows of 12 tokens, 5 tokens scored\nkl divergence: 0.0", 0), 0u) << out;
  EXPECT_EQ(seen,
            (std::vector<std::string>{model + " on cpu, 12", file + " on cpu, 12, the reference"}));
}

TEST(Commands, TheHookMakesTheArtifact) {
  TemporaryDirectory directory;
  TestArtifact().write(directory.path());
  std::string seen;
  int64_t context = 0;
  bool extra = false;
  CommandHooks hooks;
  hooks.resolve = [&](const std::string &model, const CompileHints &hints) {
    seen = model + " on " + hints.device + (extra ? " with extra" : "");
    context = hints.context;
    return directory.path();
  };
  hooks.modelHelp = "anything";
  CLI::App app("test", "test");
  addBenchCommand(app, hooks)->add_flag("--extra", extra);
  const std::string model = (directory.path() / "plan.json").string();
  const char *arguments[] = {"test",      "bench",   model.c_str(), "--device", "cpu",
                             "--context", "40",      "-n",          "2",        "--repeat",
                             "1",         "--extra", "--json"};
  testing::internal::CaptureStdout();
  int status = runCommandLine(app, std::size(arguments), arguments);
  std::string out = testing::internal::GetCapturedStdout();
  EXPECT_EQ(status, 0);
  EXPECT_EQ(json::parse(out)["context"], 40);
  EXPECT_EQ(seen, model + " on cpu with extra");
  EXPECT_EQ(context, 40);
}

TEST(Commands, ErrorsNameWhatWasGiven) {
  // The artifact that the hook made lies where the user did not look.
  TemporaryDirectory directory;
  TestArtifact().write(directory.path());
  std::string place = directory.path().string();
  CommandHooks hooks;
  hooks.resolve = [&](const std::string &, const CompileHints &hints) {
    EXPECT_TRUE(hints.needsTokenizer);
    return directory.path();
  };
  CLI::App app("test", "test");
  addRunCommand(app, hooks);
  std::string model = place + ".gguf";
  writeFile(model, "");
  const char *arguments[] = {"test", "run", model.c_str(), "-p", "a", "--device", "cuda"};
  testing::internal::CaptureStderr();
  int status = runCommandLine(app, std::size(arguments), arguments, [&](std::string message) {
    return message.replace(message.find(place), place.size(), "model.gguf (compiled)");
  });
  std::filesystem::remove(model);
  std::string error = testing::internal::GetCapturedStderr();
  EXPECT_EQ(status, 1);
  EXPECT_TRUE(error.starts_with("sluice: error: model.gguf (compiled)/plan.json: was compiled for"))
      << error;
}

} // namespace
