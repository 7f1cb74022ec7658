// Publishes one thing of each kind, or reads it and says what it found: what publish_faults.py runs under faults.
//   publish_check publish KIND DIRECTORY CONTENT      CONTENT: one letter
//   publish_check read KIND DIRECTORY                 prints the letter, or "none"; damage is an error
//   publish_check records metrics DIRECTORY WRITER N  puts N records of its own into metrics.jsonl
#include <cstdlib>
#include <functional>
#include <iostream>
#include <map>
#include <sstream>

#include "comm/run_main.hpp"
#include "core/error.hpp"
#include "io/file_io.hpp"
#include "io/hdf5.hpp"
#include "io/manifest.hpp"
#include "io/metrics.hpp"
#include "io/publish.hpp"
#include "io/safetensors.hpp"

namespace {

using namespace atelier;
namespace fs = std::filesystem;

constexpr std::size_t length = 200'000;

std::string one_letter(const std::string& text, std::size_t expected, const fs::path& path) {
    ATELIER_CHECK_INPUT(text.size() == expected && text.find_first_not_of(text[0]) == std::string::npos, "{} holds a mixture", path.string());
    return text.substr(0, 1);
}

std::vector<float> numbers(char letter) { return std::vector<float>(length / 4, static_cast<float>(letter)); }
std::string letter_of(const std::vector<float>& values, const fs::path& path) {
    for (const float v : values) ATELIER_CHECK_INPUT(v == values[0], "{} holds a mixture", path.string());
    return {static_cast<char>(values.at(0))};
}

struct Kind {
    std::function<void(const fs::path&, const std::string&)> publish;
    std::function<std::string(const fs::path&)> read;
};

const std::map<std::string, Kind> kinds{
    {"text",
     {[](const fs::path& d, const std::string& letter) {
          io::remove_temporaries(d);
          io::publish_text(d / "a.txt", std::string(length, letter[0]));
      },
      [](const fs::path& d) { return fs::exists(d / "a.txt") ? one_letter(io::read_text(d / "a.txt"), length, d / "a.txt") : "none"; }}},
    {"hdf5",
     {[](const fs::path& d, const std::string& letter) {
          io::remove_temporaries(d);
          io::publish_file(d / "a.h5", [&](const fs::path& temporary) {
              auto file = io::hdf5::File::create(temporary);
              const auto values = numbers(letter[0]);
              file.write("/a", Tensor::of(values.data(), {static_cast<std::int64_t>(values.size())}));
              file.close();
          });
      },
      [](const fs::path& d) -> std::string {
          if (!fs::exists(d / "a.h5")) return "none";
          return letter_of(io::hdf5::File::open(d / "a.h5").read<float>("/a", {-1}), d / "a.h5");
      }}},
    // One dataset that lies in two other files, and a link: as the index of a stage's shards is. Each file is published by itself.
    {"virtual",
     {[](const fs::path& d, const std::string& letter) {
          io::remove_temporaries(d);
          const std::vector<std::string> parts{"part-0.h5", "part-1.h5"};
          const auto values = numbers(letter[0]);
          const auto half = static_cast<std::int64_t>(values.size() / 2);
          for (std::size_t i = 0; i < parts.size(); ++i)
              io::publish_file(d / parts[i], [&](const fs::path& temporary) {
                  auto file = io::hdf5::File::create(temporary);
                  file.set_attribute("/", "letter", letter);
                  file.write("/a", Tensor::of(values.data(), {half}));
                  file.close();
              });
          io::publish_file(d / "all.h5", [&](const fs::path& temporary) {
              auto file = io::hdf5::File::create(temporary);
              file.write_virtual("/a", parts);
              file.write_link("/second", parts[1], "/a");
              file.write_strings("/texts", std::vector<std::string>{letter});
              file.close();
          });
      },
      [](const fs::path& d) -> std::string {
          if (!fs::exists(d / "all.h5")) return "none";
          const auto file = io::hdf5::File::open(d / "all.h5");
          ATELIER_CHECK_INPUT(file.children("/").size() == 3, "{} holds a mixture", d.string());
          auto values = file.read<float>("/a", {-1});
          const auto second = file.read<float>("/second", {-1});
          values.insert(values.end(), second.begin(), second.end());
          const std::string letter = letter_of(values, d / "all.h5");
          const std::string text = io::hdf5::File::open(d / "part-0.h5").text_attribute("/", "letter") + file.read_strings("/texts").at(0);
          ATELIER_CHECK_INPUT(text == letter + letter, "{} holds a mixture", d.string());
          return letter;
      }}},
    // Two files, weights in two shards, and a manifest: as a policy is.
    {"directory",
     {[](const fs::path& d, const std::string& letter) {
          io::remove_temporaries(d);
          io::publish_directory(d / "policy", [&](const fs::path& temporary) {
              const auto values = numbers(letter[0]);
              const auto half = static_cast<std::int64_t>(values.size() / 2);
              io::Manifest m;
              m.stage = letter;
              for (const std::string& name : io::write_sharded(temporary, "model", {{"a", Tensor::of(values.data(), {half}), DType::f32},
                                                                                   {"b", Tensor::of(values.data() + half, {half}), DType::f32}},
                                                               length / 2, {}))
                  m.outputs[name] = {};
              io::write_text(temporary / "table.txt", std::string(length, letter[0]));
              m.outputs["table.txt"] = {};
              io::publish_manifest(temporary, m);
          });
      },
      [](const fs::path& d) -> std::string {
          for (;;) {
              if (!io::is_complete(d / "policy")) return "none";
              const std::string letter = io::read_manifest(d / "policy").stage;
              const auto weights = io::Safetensors::open_component(d / "policy", "model");
              const std::string table = one_letter(io::read_text(d / "policy/table.txt"), length, d / "policy");
              // Between two equal manifests one version was read; otherwise it was replaced meanwhile.
              if (io::read_manifest(d / "policy").stage != letter) continue;
              ATELIER_CHECK_INPUT(weights.tensors().size() == 2 && table == letter, "{} holds a mixture", d.string());
              return letter;
          }
      }}},
    {"metrics",
     {[](const fs::path& d, const std::string& letter) {
          io::put_metrics(d / "metrics.jsonl", {{"stage", "grpo"}, {"iteration", 1}, {"letter", letter}});
      },
      [](const fs::path& d) -> std::string {
          if (!fs::exists(d / "metrics.jsonl")) return "none";
          std::string found = "none";
          std::istringstream lines(io::read_text(d / "metrics.jsonl"));
          int others = 0;
          for (std::string line; std::getline(lines, line);) {
              const auto record = nlohmann::json::parse(line);
              if (record.at("stage") == "grpo") found = record.at("letter");
              else ++others;
          }
          ATELIER_CHECK_INPUT(others == 0 || others == 500, "{}: records were lost, {} are left", (d / "metrics.jsonl").string(), others);
          return found;
      }}},
};

int run(int argc, char** argv) {
    ATELIER_CHECK_USAGE(argc >= 4 && kinds.contains(argv[2]), "publish_check publish|read KIND DIRECTORY [CONTENT]");
    const Kind& kind = kinds.at(argv[2]);
    if (std::string(argv[1]) == "publish") kind.publish(argv[3], argv[4]);
    else if (std::string(argv[1]) == "records")
        for (int i = 0; i < std::atoi(argv[5]); ++i)
            io::put_metrics(fs::path(argv[3]) / "metrics.jsonl", {{"stage", "distill"}, {"policy", argv[4]}, {"iteration", i}});
    else std::cout << kind.read(argv[3]) << '\n';
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    return comm::run_main(argc, argv, "publish_check", [](comm::Communicator&, int count, char** arguments) { return run(count, arguments); });
}
