// What CUDA devices this machine has.
#pragma once
#include <stdint.h>

#include <string>
#include <vector>

namespace perigee::cuda {

struct DeviceInfo {
  int index;
  std::string name, capability;  // such as 9.0
  uint64_t memory_bytes, free_bytes;
  uint32_t multiprocessors;
  uint64_t cache_bytes;
};

// Why there are none, '' when there are. Devices that no kernel of this build runs on are left out.
std::string find_devices(std::vector<DeviceInfo>& to);

// Lets device `to` read the memory of `from` directly, where they are connected: copies go by way of the host otherwise.
void connect_devices(int from, int to);

// GB a second that copies within the memory of device `index` read and write, both counted: what its kernels are measured
// against. 0 where there is no room to measure.
double measure_copies(int index);

}  // namespace perigee::cuda
