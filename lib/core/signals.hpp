#pragma once

#include <csignal>

namespace atelier {

/// From now on USR1, TERM and INT set a flag instead of ending the process. Call it from the main thread before threads are made.
///
/// The signals are handled on a thread that does nothing else, and are blocked in the caller and in every thread that it makes
/// afterwards: oneDNN's AVX products point the stack pointer at packed panels on the heap, and a signal that arrives meanwhile
/// would write its frame there.
void catch_signals();

/// Threads that are made during its life take no signals: these are for those who watch for them.
class SignalsBlocked {
  public:
    SignalsBlocked();
    ~SignalsBlocked();
    SignalsBlocked(const SignalsBlocked&) = delete;
    SignalsBlocked& operator=(const SignalsBlocked&) = delete;

  private:
    sigset_t before_;
};

/// Whether one of them came.
bool signal_was_seen();
/// As if one had come: a rank passes on what another one saw.
void note_signal();

}  // namespace atelier
