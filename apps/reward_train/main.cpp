#include "stage/reward_train.hpp"
#include "stage/run_main.hpp"

int main(int argc, char** argv) {
    using namespace atelier::stage;
    return run_main(argc, argv, "atelier-reward-train", "a judge fine-tuned from people's labels, measured on held-out ones", Names::nothing,
                    run_reward_train);
}
