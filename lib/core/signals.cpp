#include "core/signals.hpp"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <thread>

namespace atelier {
namespace {

std::atomic<bool> seen{false};
static_assert(std::atomic<bool>::is_always_lock_free);

void on_signal(int) { seen.store(true); }

}  // namespace

void catch_signals() {
    static bool installed = false;
    if (installed) return;
    installed = true;
    sigset_t caught;
    sigemptyset(&caught);
    struct sigaction action {};
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    for (const int s : {SIGUSR1, SIGTERM, SIGINT}) {
        sigaddset(&caught, s);
        sigaction(s, &action, nullptr);
    }
    std::thread([caught] {
        pthread_sigmask(SIG_UNBLOCK, &caught, nullptr);
        for (;;) pause();
    }).detach();
    pthread_sigmask(SIG_BLOCK, &caught, nullptr);
}

SignalsBlocked::SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
}

SignalsBlocked::~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

bool signal_was_seen() { return seen.load(); }

void note_signal() { seen.store(true); }

}  // namespace atelier
