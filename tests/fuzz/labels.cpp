// Labels of people: JSON lines, and the CSV of a sheet.
#include "fuzz/target.hpp"
#include "io/csv.hpp"
#include "io/image/png.hpp"
#include "judge/labels.hpp"

namespace atelier::fuzz {

void run_one(std::span<const std::uint8_t> bytes) {
    static const bool picture = (io::write_png(scratch() / "p.png", io::Image(2, 2, 3, 90)), true);
    const auto path = as_file("labels.jsonl", bytes);
    read_or_refuse([&] {
        for (const auto& sample : judge::read_labels(path))
            if (!picture || sample.picture->load().width != 2 || !(sample.mean_score() >= 1 && sample.mean_score() <= 5)) std::abort();
    });
    io::CsvRows rows;
    read_or_refuse([&] { rows = io::parse_csv(as_text(bytes), "labels.csv"); });
    if (!rows.empty() && io::parse_csv(io::to_csv(rows), "again") != rows) std::abort();
}

}  // namespace atelier::fuzz
