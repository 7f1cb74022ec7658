#include "stage/context.hpp"

#include <fmt/format.h>

#include <atomic>
#include <boost/program_options.hpp>
#include <csignal>
#include <iostream>

#include "core/parallel.hpp"
#include "flow/step_choice.hpp"
#include "io/image/png.hpp"
#include "stage/schema.hpp"

namespace atelier::stage {
namespace {

namespace po = boost::program_options;

std::atomic<bool> signal_seen{false};
static_assert(std::atomic<bool>::is_always_lock_free);

void on_signal(int) { signal_seen.store(true); }

}  // namespace

std::filesystem::path RunDirectory::iteration(const std::string& task, std::int64_t iteration) const {
    return root / task / fmt::format("iter-{:04}", iteration);
}

std::filesystem::path Context::starting_policy() const {
    if (iteration == 1) return model() / "transformer";
    const auto directory = run.policy(task, iteration - 1);
    ATELIER_CHECK_INPUT(io::is_complete(directory), "{} is not complete: run iteration {} of task {} first", directory.string(),
                        iteration - 1, task);
    return directory;
}

rl::SamplingSpec Context::sampling(const pipeline::Pipeline& pipeline) const {
    rl::SamplingSpec s;
    s.target = {config.integer("sampling.height") / model::pixels_per_latent, config.integer("sampling.width") / model::pixels_per_latent};
    s.schedule = pipeline.schedule(static_cast<int>(config.integer("sampling.steps")), s.target.tokens());
    s.sampler = flow::parse_sampler(config.text("sampling.sampler"));
    s.eta = config.number("sampling.eta");
    s.log_prob = flow::parse_log_prob(config.text("sampling.log_prob"));
    s.guidance = {config.number("sampling.guidance_scale"), config.flag("sampling.guidance_rescale")};
    s.guidance_train = flow::parse_guidance_train(config.text("sampling.guidance_train"));
    s.members = static_cast<int>(config.integer("rollout.group_size"));
    s.micro_batch = static_cast<int>(config.integer("rollout.micro_batch"));
    flow::StepChoice choice;
    choice.policy = flow::parse_step_policy(config.text("steps.choice"));
    choice.count = static_cast<int>(config.integer("steps.count"));
    choice.gamma = config.number("steps.gamma");
    choice.window_begin = static_cast<int>(config.integer("steps.window_begin"));
    s.trained_steps = flow::choose_steps(choice, s.sampler, s.eta, s.schedule.sigmas, seed(), static_cast<std::uint64_t>(iteration),
                                         task_number(task));
    return s;
}

io::Manifest Context::new_manifest(const std::string& stage) const {
    io::Manifest m;
    m.stage = stage;
    m.task = task;
    m.iteration = static_cast<std::uint64_t>(iteration);
    m.config_hash = config.hash();
    m.code_version = code_version();
    m.started_utc = io::utc_now();
    return m;
}

std::unique_ptr<Context> make_context(const char* program, int argc, char** argv, comm::Communicator& world) {
    std::string run, task;
    std::int64_t iteration = 0;
    po::options_description text(fmt::format("{}: one iteration of one task of a run", program));
    text.add_options()("help", "this text")("run", po::value(&run), "run directory (required); atelier-plan makes it")(
        "task", po::value(&task), "task of the configuration (required)")("iteration", po::value(&iteration), "from 1 (required)");
    try {
        po::variables_map values;
        po::store(po::parse_command_line(argc, argv, text), values);
        po::notify(values);
        if (values.count("help") != 0) {
            if (world.is_root()) std::cout << text << '\n';
            return nullptr;
        }
    } catch (const po::error& e) {
        ATELIER_FAIL(ErrorKind::usage, "{} (see --help)", e.what());
    }
    ATELIER_CHECK_USAGE(!run.empty() && !task.empty() && iteration >= 1, "--run, --task and --iteration (from 1) are required (see --help)");
    const RunDirectory directory{run};
    ATELIER_CHECK_USAGE(std::filesystem::exists(directory.config()), "{} is missing: make the run with atelier-plan --config FILE --run {}",
                        directory.config().string(), run);
    auto context = std::make_unique<Context>(Context{directory, config::Config::resolve(directory.config(), {}, schema()), task, iteration, &world});
    const auto tasks = context->config.tasks();
    ATELIER_CHECK_USAGE(std::find(tasks.begin(), tasks.end(), task) != tasks.end(), "{} has no [task.{}]", directory.config().string(), task);
    set_threads(static_cast<int>(context->config.integer("compute.threads")));
    catch_signals();
    return context;
}

std::unique_ptr<io::DirectoryLock> begin_stage(const Context& c, const std::filesystem::path& directory, bool& complete) {
    std::unique_ptr<io::DirectoryLock> lock;
    // Rank 0 decides; if it throws, it ends the others.
    std::byte done{0};
    if (c.world->is_root()) {
        lock = std::make_unique<io::DirectoryLock>(directory);
        io::remove_temporaries(directory);
        done = std::byte{io::is_complete(directory)};
    }
    c.world->broadcast(std::span(&done, 1), 0);
    complete = done != std::byte{0};
    return lock;
}

void catch_signals() {
    struct sigaction action {};
    action.sa_handler = on_signal;
    for (const int s : {SIGUSR1, SIGTERM, SIGINT}) sigaction(s, &action, nullptr);
}

bool stop_was_asked(comm::Communicator& world) { return world.any(signal_seen.load()); }

std::string code_version() { return ATELIER_CODE_VERSION; }

EncodedPair encode_pair(pipeline::Pipeline& model, const Context& c, const Prompt& prompt, const rl::SamplingSpec& spec) {
    std::vector<io::Image> images;
    for (const auto& path : prompt.images) images.push_back(io::read_png(path));
    const auto references = model.prepare(images, c.config.integer("sampling.output_resolution"));
    EncodedPair pair;
    pair.conditional = model.encode(prompt.text, references);
    if (spec.uses_guidance()) pair.unconditional = model.encode(c.config.text("task." + c.task + ".negative"), references);
    return pair;
}

}  // namespace atelier::stage
