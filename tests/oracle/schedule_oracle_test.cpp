#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "flow/schedule.hpp"
#include "oracle_folder.hpp"

namespace atelier::flow {
namespace {

constexpr double tolerance = 1e-6;  // of case.json: float32 values written with all digits

nlohmann::json read_json(const std::filesystem::path& path) {
    std::ifstream file(path);
    return nlohmann::json::parse(file);
}

void check_row(const ScheduleConfig& config, const nlohmann::json& row, const char* tokens) {
    const Schedule schedule =
        make_schedule(config, row["steps"].get<int>(), row[tokens].get<std::int64_t>());
    const auto& sigmas = row["sigmas"];
    const auto& timesteps = row["timesteps"];
    ASSERT_EQ(schedule.sigmas.size(), sigmas.size());
    ASSERT_EQ(schedule.timesteps.size(), timesteps.size());
    for (std::size_t i = 0; i < sigmas.size(); ++i)
        ASSERT_NEAR(schedule.sigmas[i], sigmas[i].get<double>(), tolerance)
            << row.dump().substr(0, 120);
    for (std::size_t i = 0; i < timesteps.size(); ++i)
        ASSERT_NEAR(schedule.timesteps[i], timesteps[i].get<double>(),
                    tolerance * static_cast<double>(config.num_train_timesteps));
    if (config.use_dynamic_shifting) {
        ASSERT_NEAR(schedule.mu, row["mu"].get<double>(), 1e-12);
    }
}

TEST(ScheduleOracle, oracle_configs_of_the_transformer_set) {
    const auto folder = testing::oracle_folder() / "transformer" / "scheduler";
    const auto configs = read_json(folder / "configs.json");
    std::ifstream rows(folder / "sigmas.jsonl");
    int count = 0;
    for (std::string line; std::getline(rows, line); ++count) {
        const auto row = nlohmann::json::parse(line);
        const auto& config = configs.at(row["config"].get<std::string>());
        ASSERT_NO_FATAL_FAILURE(
            check_row(parse_schedule_config(config, "configs.json"), row, "tokens"));
    }
    EXPECT_GT(count, 0);
}

TEST(ScheduleOracle, oracle_table_of_the_parts_set) {
    const auto table =
        read_json(testing::oracle_folder() / "parts" / "case-schedule" / "schedule.json");
    ASSERT_FALSE(table["rows"].empty());
    for (const auto& row : table["rows"]) {
        nlohmann::json config = table;
        config.erase("rows");
        config["use_dynamic_shifting"] = true;
        config["shift_terminal"] = row["shift_terminal"];
        ASSERT_NO_FATAL_FAILURE(
            check_row(parse_schedule_config(config, "schedule.json"), row, "image_tokens"));
    }
}

TEST(ScheduleOracle, oracle_scheduler_of_the_pipeline) {
    const auto path =
        testing::oracle_folder() / "pipeline" / "pipeline" / "scheduler" / "scheduler_config.json";
    const ScheduleConfig config = read_schedule_config(path);
    EXPECT_GT(config.num_train_timesteps, 0);
    EXPECT_EQ(make_schedule(config, 8, 64).steps(), 8);
}

}  // namespace
}  // namespace atelier::flow
