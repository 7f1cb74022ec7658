#pragma once

#include <filesystem>
#include <future>
#include <nlohmann/json.hpp>
#include <optional>

#include "io/manifest.hpp"
#include "stage/trainer.hpp"

namespace atelier::stage {

/// A manifest's inputs as snapshots compare them: hashes by name.
nlohmann::json input_hashes(const io::Manifest& manifest);

/// Training states within a stage, so that a killed one goes on from its last one instead of from its beginning ([checkpoint] keep). Written beside the next updates, each rank its shard; published by a rename when all ranks' files are on disk, which the
/// ranks find out between updates. Directories update-000012/ with the training state's files, the weights in them, and snapshot.json:
/// the stage's own cursor.
class Snapshots {
  public:
    /// `every`: so many updates; 0: never. `inputs`: digests of what is trained on, by name; a state of other inputs is refused.
    Snapshots(const Context& context, std::filesystem::path directory, Trainer& trainer, std::int64_t every, nlohmann::json inputs);
    ~Snapshots();

    /// Gives the trainer its newest published state; returns the cursor that was kept with it, or nothing. Throws Error(input) for a state
    /// of another configuration or of other inputs. Collective.
    std::optional<nlohmann::json> resume();
    /// After every update: publishes what has been written meanwhile, and begins to write the present state if it is its turn.
    /// `cursor`: where the stage stands after this update. Collective. Throws Error(io) when a write failed.
    void after_update(const nlohmann::json& cursor);
    /// Before the stage ends early: waits for what is in writing, and publishes it and the present state, where that isn't the newest one already.
    /// Collective.
    void settle(const nlohmann::json& cursor);
    /// When the stage's product is published: nothing of this is needed any more. Collective.
    void remove();
    /// Whether there are any.
    bool is_on() const { return every_ > 0; }

  private:
    void write_state(const nlohmann::json& cursor);
    void publish_written(bool waits);
    /// A name of its own for each state: where directories are shared over NFS another node may go on writing to what a name meant before.
    std::filesystem::path writing_to() const;
    const Context& context_;
    std::filesystem::path directory_;
    Trainer& trainer_;
    std::int64_t every_, keep_;
    nlohmann::json inputs_;
    std::future<void> written_;
    std::int64_t in_writing_ = 0;  ///< update number; 0: none
    std::int64_t newest_;          ///< that is in writing or published; at first that from which the stage starts, which is not written again
    nlohmann::json cursor_;
};

/// For a stage whose product is published: what one that was killed before remove() left. On rank 0.
void remove_snapshots(const std::filesystem::path& directory);

}  // namespace atelier::stage
