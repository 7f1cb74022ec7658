#pragma once

namespace emulator {

/// From here on the computation's stream waits for a collective that never ends, and so does whoever waits for the device.
void stall();

}  // namespace emulator
