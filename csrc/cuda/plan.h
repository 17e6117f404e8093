// A list of parameters on one CUDA device: checked and cut once, stepped on without a word from the device.
#pragma once
#include <memory>

#include "groups.h"

namespace pytl::cuda {

// What one call adds. All that is pointed to must last until its work is done; if it is captured, as long as its graph.
struct Call {
  void* stream;             // cudaStream_t
  const float* found_inf;   // null, or not 0: nothing is to be changed
  const float* loss_scale;  // null: 1
  uint64_t* addresses;      // null, or, where the call is captured, memory of its own for address_count() of them
};

class Schedule;
template <class Options>
struct Tables;

class Plan {
 public:
  // Throws std::invalid_argument for operands that cannot be stepped on.
  Plan(std::vector<Parameter>, int device);
  ~Plan();

  // The plan's device memory, which is the caller's: a copy of tables(), and scratch_bytes() zeros.
  std::vector<char> tables() const;
  size_t scratch_bytes() const;
  void place(char* tables, char* scratch) { tables_ = tables, scratch_ = scratch; }

  size_t address_count() const { return 2 * list_.parameters().size(); }
  // False, and nothing is changed, where penalties come or go: the list is then to be cut anew.
  bool renew(const std::vector<int64_t>& gradients, const std::vector<int64_t>& penalties);

  // rows and weights lie on the device. All three throw std::runtime_error where CUDA reports an error, and where a
  // call is captured although the options have changed since the last one that was not.
  template <class Options>
  void gram(const std::vector<DeviceGroup<Options>>&, GramRow* rows, const Call&);
  template <class Options>
  void step(const std::vector<DeviceGroup<Options>>&, const WeightsRow* weights, double max_norm, GramRow* rows,
            const Call&);
  // Options for the steps that were captured: they read them from the device.
  template <class Options>
  void write_options(const std::vector<DeviceGroup<Options>>&, const Call&);

 private:
  template <class Options>
  Tables<Options> prepare(const std::vector<DeviceGroup<Options>>&, GramRow* rows, double max_norm, const Call&);
  void write_addresses(const Call&);

  TensorList list_;
  const int device_;
  const size_t groups_;
  std::unique_ptr<const Schedule> schedule_;
  char *tables_ = nullptr, *scratch_ = nullptr;
  bool addresses_are_on_device_ = false;
  std::vector<uint64_t> options_on_device_;
};

}  // namespace pytl::cuda
