// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "test/unit/runtime/FakeCuda.h"

#include "runtime/device/cuda/Driver.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <utility>

using namespace sluice::runtime::cuda;
using sluice::runtime::test::FakeCuda;
using sluice::runtime::test::FakeLaunch;
using sluice::runtime::test::WorkOrder;

extern "C" {
void embed(void *const *args, int64_t begin, int64_t end);
void attend(void *const *args, int64_t begin, int64_t end);
void rotate(void *const *args, int64_t begin, int64_t end);
void head(void *const *args, int64_t begin, int64_t end);
void choose(void *const *args, int64_t begin, int64_t end);
void draw(void *const *args, int64_t begin, int64_t end);
void spoil(void *const *args, int64_t begin, int64_t end);
void spoil_late(void *const *args, int64_t begin, int64_t end);
}

#define FAKE_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr Result invalidValue = 1, invalidContext = 201, invalidHandle = 400, invalidPtx = 218;

/// Device pointers have this bit: the host that uses one crashes, as with a real one.
constexpr uint64_t deviceBit = uint64_t(1) << 62;

struct Kernel {
  std::string name;
  size_t parameters;
  std::function<void(const std::vector<uint64_t> &, unsigned grid)> run;
};

using Action = std::function<void()>;

/// What a stream has to do: an action, or waiting until an event's record of this number is done.
struct Work {
  Action action;
  void *event = nullptr;
  uint64_t record = 0;
};

struct FakeEvent {
  /// How many records were asked for, and how many are done.
  uint64_t recorded = 0, done = 0;
  /// Where the last one was asked for.
  void *stream = nullptr;
  /// Time of the last record that is done.
  double time = 0;
};

FakeCuda state;
std::map<uint64_t, size_t> memory; // address (with the bit) to bytes
std::set<void *> contexts, modules, pinnedMemory;
std::map<void *, std::deque<Work>> streams;
std::set<void *> graphStreams;
std::map<void *, FakeEvent> events;
std::map<void *, std::vector<Action>> graphs, graphExecs;
std::vector<void *> contextStack;
bool capturing = false;
std::vector<Action> captured;
std::map<std::string, int> callCounts;
double fakeClock = 0;

void complain(const std::string &what) { state.complaints.push_back(what); }

/// Host address of [pointer, pointer + bytes), which must lie in one allocation.
std::byte *hostAddress(uint64_t pointer, size_t bytes) {
  auto after = memory.upper_bound(pointer);
  if (after != memory.begin()) {
    auto [base, size] = *std::prev(after);
    if (pointer - base <= size && bytes <= size - (pointer - base))
      return reinterpret_cast<std::byte *>(pointer & ~deviceBit);
  }
  complain("an access to " + std::to_string(bytes) + " bytes leaves device memory");
  return nullptr;
}

/// Kernels of kernels.c: pointers to whole buffers.
Kernel hostKernel(const char *name, size_t parameters,
                  void (*function)(void *const *, int64_t, int64_t)) {
  return {name, parameters, [function](const std::vector<uint64_t> &values, unsigned grid) {
            std::vector<void *> pointers;
            for (uint64_t value : values)
              pointers.push_back(hostAddress(value, 1));
            function(pointers.data(), 0, grid);
          }};
}

std::vector<Kernel> kernels = {
    hostKernel("embed", 5, embed),
    hostKernel("attend", 3, attend),
    hostKernel("rotate", 2, rotate),
    hostKernel("head", 4, head),
    hostKernel("choose", 3, choose),
    hostKernel("draw", 3, draw),
    hostKernel("spoil", 1, spoil),
    hostKernel("spoil_late", 2, spoil_late),
    {"sluice_read_ceiling", 3,
     [](const std::vector<uint64_t> &values, unsigned grid) {
       auto *bytes = reinterpret_cast<const uint64_t *>(hostAddress(values[1], 8));
       std::byte *out = hostAddress(values[2], size_t(8) * grid);
       if (!bytes || !out)
         return;
       if (*bytes % 65536 || values[0] % 256)
         complain("sluice_read_ceiling gets an odd buffer");
       if (std::byte *data = hostAddress(values[0], *bytes))
         std::memcpy(out, data, 8);
     }},
    // Written from the rule, not from the runtime's function.
    {"sluice_synthesize", 2, [](const std::vector<uint64_t> &values, unsigned) {
       auto *header = reinterpret_cast<const uint64_t *>(hostAddress(values[0], 32));
       if (!header)
         return;
       auto [bytes, seed, period, regions] =
           std::array<uint64_t, 4>{header[0], header[1], header[2], header[3]};
       std::byte *out = hostAddress(values[1], bytes);
       auto *table = reinterpret_cast<const uint64_t *>(hostAddress(values[0] + 32, 24 * regions));
       if (!out || !table)
         return;
       for (uint64_t h = 0; h < bytes / 8; ++h) {
         const uint64_t *region = table;
         while (8 * h % period >= region[0])
           region += 3;
         uint64_t z = seed + (h + 1) * 0x9E3779B97F4A7C15u;
         z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
         z = (z ^ z >> 27) * 0x94D049BB133111EBu;
         z = ((z ^ z >> 31) & region[1]) | region[2];
         std::memcpy(out + 8 * h, &z, 8);
       }
     }}};

/// What every call does first: whether it is to fail.
Result begin(const char *name, bool record = true, bool needsContext = true) {
  if (record)
    state.calls.push_back(name);
  if (state.failing == name && callCounts[name]++ >= state.failAfter)
    return state.failure;
  if (needsContext && contextStack.empty()) {
    complain(std::string(name) + " without a context");
    return invalidContext;
  }
  return success;
}

#define BEGIN(...)                                                                                 \
  if (Result result = begin(__func__ __VA_OPT__(, ) __VA_ARGS__))                                  \
  return result

template <typename Set, typename Handle> bool isHandle(const Set &set, Handle handle) {
  if (set.count(handle))
    return true;
  complain("a handle that does not exist");
  return false;
}

template <typename Handle> Handle newHandle() {
  // An address of its own.
  static std::vector<std::unique_ptr<char>> all;
  all.push_back(std::make_unique<char>());
  return reinterpret_cast<Handle>(all.back().get());
}

/// Does the stream's work, and what it waits for on other streams, until `done` says so or nothing
/// is left.
void work(void *stream, const std::function<bool()> &done) {
  while (!done() && !streams[stream].empty()) {
    Work next = streams[stream].front();
    if (next.event && events[next.event].done < next.record) {
      void *other = events[next.event].stream;
      work(other, [&] { return events[next.event].done >= next.record; });
      if (events[next.event].done < next.record)
        return complain("a stream waits for what never comes");
      continue;
    }
    streams[stream].pop_front();
    if (next.action)
      next.action();
  }
}

void workAll(void *stream) {
  work(stream, [] { return false; });
}

Result enqueue(Stream stream, Work item) {
  if (!isHandle(streams, stream))
    return invalidHandle;
  if (capturing && item.action) {
    captured.push_back(std::move(item.action));
    return success;
  }
  streams[stream].push_back(std::move(item));
  if (state.order == WorkOrder::Early ||
      (state.order == WorkOrder::GraphsEarly && graphStreams.count(stream)))
    workAll(stream);
  return success;
}

Result enqueue(Stream stream, Action action) { return enqueue(stream, Work{std::move(action)}); }

} // namespace

FAKE_EXPORT FakeCuda *fakeCuda() { return &state; }
/// Counts the calls of an entry point from zero again.
FAKE_EXPORT void fakeCudaForget(const char *name) { callCounts[name] = 0; }
FAKE_EXPORT void fakeCudaReset() {
  state = {};
  callCounts.clear();
}

FAKE_EXPORT Result cuGetErrorName(Result result, const char **name) {
  *name = result == 2     ? "CUDA_ERROR_OUT_OF_MEMORY"
          : result == 218 ? "CUDA_ERROR_INVALID_PTX"
          : result == 719 ? "CUDA_ERROR_LAUNCH_FAILED"
                          : nullptr;
  return *name ? success : invalidValue;
}
FAKE_EXPORT Result cuGetErrorString(Result result, const char **text) {
  *text = result == 2     ? "out of memory"
          : result == 218 ? "a PTX JIT compilation failed"
          : result == 719 ? "unspecified launch failure"
                          : nullptr;
  return *text ? success : invalidValue;
}
FAKE_EXPORT Result cuInit(unsigned) {
  BEGIN(true, false);
  return state.initResult;
}
FAKE_EXPORT Result cuDriverGetVersion(int *version) {
  *version = state.version;
  return success;
}
FAKE_EXPORT Result cuDeviceGetCount(int *count) {
  *count = state.devices;
  return success;
}
FAKE_EXPORT Result cuDeviceGet(DeviceHandle *device, int ordinal) {
  if (ordinal < 0 || ordinal >= state.devices)
    return invalidValue;
  *device = 7;
  return success;
}
FAKE_EXPORT Result cuDeviceGetName(char *name, int length, DeviceHandle) {
  std::snprintf(name, static_cast<size_t>(length), "Fake GPU");
  return success;
}
FAKE_EXPORT Result cuDeviceGetAttribute(int *value, int attribute, DeviceHandle device) {
  if (device != 7)
    return invalidHandle;
  switch (attribute) {
  case maxThreadsPerBlock:
    *value = state.maxThreads;
    return success;
  case multiprocessorCount:
    *value = state.multiprocessors;
    return success;
  case l2CacheSize:
    *value = state.l2Bytes;
    return success;
  case capabilityMajor:
    *value = state.major;
    return success;
  case capabilityMinor:
    *value = state.minor;
    return success;
  case maxSharedMemoryPerBlockOptin:
    *value = state.maxShared;
    return success;
  default:
    return invalidValue;
  }
}
FAKE_EXPORT Result cuDeviceTotalMem_v2(size_t *bytes, DeviceHandle) {
  *bytes = state.totalBytes;
  return success;
}
FAKE_EXPORT Result cuDevicePrimaryCtxRetain(Context *context, DeviceHandle) {
  BEGIN(true, false);
  *context = newHandle<Context>();
  contexts.insert(*context);
  ++state.contexts;
  return success;
}
FAKE_EXPORT Result cuDevicePrimaryCtxRelease_v2(DeviceHandle) {
  BEGIN(true, false);
  --state.contexts;
  return success;
}
FAKE_EXPORT Result cuCtxPushCurrent_v2(Context context) {
  if (!isHandle(contexts, context))
    return invalidContext;
  contextStack.push_back(context);
  ++state.current;
  return success;
}
FAKE_EXPORT Result cuCtxPopCurrent_v2(Context *context) {
  if (contextStack.empty())
    return invalidContext;
  *context = static_cast<Context>(contextStack.back());
  contextStack.pop_back();
  --state.current;
  return success;
}
FAKE_EXPORT Result cuMemGetInfo_v2(size_t *free, size_t *total) {
  BEGIN(false);
  *free = state.freeBytes;
  *total = state.totalBytes;
  return success;
}
FAKE_EXPORT Result cuModuleLoadDataEx(Module *module, const void *image, unsigned count,
                                      int *options, void **values) {
  BEGIN();
  const char *text = static_cast<const char *>(image);
  state.images.push_back(text[0] == '\x7f' ? "cubin" : text);
  if (!state.jitLog.empty()) {
    for (unsigned i = 0; i < count; ++i)
      if (options[i] == jitErrorLogBuffer)
        std::strcpy(static_cast<char *>(values[i]), state.jitLog.c_str());
    return invalidPtx;
  }
  *module = newHandle<Module>();
  modules.insert(*module);
  ++state.modules;
  return success;
}
FAKE_EXPORT Result cuModuleUnload(Module module) {
  BEGIN();
  if (!modules.erase(module))
    return invalidHandle;
  --state.modules;
  return success;
}
FAKE_EXPORT Result cuModuleGetFunction(Function *function, Module module, const char *name) {
  BEGIN(false);
  if (!isHandle(modules, module))
    return invalidHandle;
  for (Kernel &kernel : kernels)
    if (kernel.name == name) {
      *function = reinterpret_cast<Function>(&kernel);
      return success;
    }
  return errorNotFound;
}
FAKE_EXPORT Result cuFuncGetAttribute(int *value, int attribute, Function) {
  BEGIN(false);
  *value = attribute == functionMaxThreadsPerBlock ? state.kernelMaxThreads : 0;
  return success;
}
FAKE_EXPORT Result cuOccupancyMaxActiveClusters(int *clusters, Function,
                                                const LaunchConfig *config) {
  BEGIN(false);
  if (config->attributeCount == 0)
    return invalidValue;
  *clusters = state.residentClusters;
  return success;
}
FAKE_EXPORT Result cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, Function, int, size_t) {
  BEGIN(false);
  *blocks = state.residentBlocks;
  return success;
}
FAKE_EXPORT Result cuFuncSetAttribute(Function function, int attribute, int value) {
  BEGIN(false);
  const std::string &name = reinterpret_cast<Kernel *>(function)->name;
  if (attribute == functionMaxDynamicSharedBytes)
    state.sharedLimit[name] = value;
  else if (attribute == functionNonPortableClusterSizeAllowed)
    state.nonPortable[name] = value != 0;
  else
    return invalidValue;
  return success;
}
FAKE_EXPORT Result cuMemAlloc_v2(DevicePointer *pointer, size_t bytes) {
  BEGIN();
  void *data = nullptr;
  if (bytes == 0 || posix_memalign(&data, 256, bytes))
    return invalidValue;
  std::memset(data, 0xCD, bytes); // not zero: it is not in a GPU either
  *pointer = reinterpret_cast<uint64_t>(data) | deviceBit;
  memory[*pointer] = bytes;
  state.allocated += bytes;
  state.peak = std::max(state.peak, state.allocated);
  return success;
}
FAKE_EXPORT Result cuMemFree_v2(DevicePointer pointer) {
  BEGIN();
  auto found = memory.find(pointer);
  for (auto &[stream, items] : streams)
    if (!items.empty())
      complain("memory is freed while a stream has work to do");
  if (found == memory.end()) {
    complain("memory is freed that is not allocated");
    return invalidValue;
  }
  state.allocated -= found->second;
  std::free(reinterpret_cast<void *>(pointer & ~deviceBit));
  memory.erase(found);
  return success;
}
FAKE_EXPORT Result cuMemHostAlloc(void **pointer, size_t bytes, unsigned) {
  BEGIN();
  *pointer = std::malloc(bytes);
  pinnedMemory.insert(*pointer);
  ++state.pinned;
  return success;
}
FAKE_EXPORT Result cuMemFreeHost(void *pointer) {
  BEGIN();
  if (!pinnedMemory.erase(pointer)) {
    complain("host memory is freed that is not pinned");
    return invalidValue;
  }
  std::free(pointer);
  --state.pinned;
  return success;
}
FAKE_EXPORT Result cuMemcpyHtoDAsync_v2(DevicePointer to, const void *from, size_t bytes,
                                        Stream stream) {
  BEGIN();
  state.uploadedBytes += bytes;
  state.largestUpload = std::max(state.largestUpload, bytes);
  return enqueue(stream, [=] {
    if (std::byte *host = hostAddress(to, bytes))
      std::memcpy(host, from, bytes);
  });
}
FAKE_EXPORT Result cuMemcpyDtoHAsync_v2(void *to, DevicePointer from, size_t bytes, Stream stream) {
  BEGIN();
  state.downloads.push_back(bytes);
  return enqueue(stream, [=] {
    if (std::byte *host = hostAddress(from, bytes))
      std::memcpy(to, host, bytes);
  });
}
FAKE_EXPORT Result cuMemcpyDtoDAsync_v2(DevicePointer to, DevicePointer from, size_t bytes,
                                        Stream stream) {
  BEGIN();
  return enqueue(stream, [=] {
    std::byte *target = hostAddress(to, bytes), *source = hostAddress(from, bytes);
    if (target && source)
      std::memmove(target, source, bytes);
    fakeClock += 1e-9 * static_cast<double>(bytes);
  });
}
FAKE_EXPORT Result cuMemsetD8Async(DevicePointer to, unsigned char value, size_t bytes,
                                   Stream stream) {
  BEGIN();
  return enqueue(stream, [=] {
    if (std::byte *host = hostAddress(to, bytes))
      std::memset(host, value, bytes);
  });
}
FAKE_EXPORT Result cuStreamCreate(Stream *stream, unsigned) {
  BEGIN();
  *stream = newHandle<Stream>();
  streams[*stream] = {};
  ++state.streams;
  return success;
}
FAKE_EXPORT Result cuStreamDestroy_v2(Stream stream) {
  BEGIN();
  if (streams.count(stream) && !streams[stream].empty())
    complain("a stream is destroyed that has work to do");
  if (!streams.erase(stream))
    return invalidHandle;
  --state.streams;
  return success;
}
FAKE_EXPORT Result cuStreamSynchronize(Stream stream) {
  if (capturing) {
    complain("synchronized while capturing");
    return invalidHandle;
  }
  if (!isHandle(streams, stream))
    return invalidHandle;
  // A failure is one of the work, after which none is left.
  workAll(stream);
  BEGIN();
  return success;
}
FAKE_EXPORT Result cuStreamWaitEvent(Stream stream, Event event, unsigned) {
  BEGIN();
  if (!isHandle(events, event) || capturing)
    return invalidHandle;
  // As the driver has it: only records that were asked for before count, and none is no wait.
  return enqueue(stream, Work{{}, event, events[event].recorded});
}
FAKE_EXPORT Result cuStreamBeginCapture_v2(Stream stream, int) {
  BEGIN();
  if (!isHandle(streams, stream) || capturing)
    return invalidHandle;
  capturing = true;
  captured.clear();
  return success;
}
FAKE_EXPORT Result cuStreamEndCapture(Stream, Graph *graph) {
  // Capturing ends, whatever comes of it.
  bool wasCapturing = std::exchange(capturing, false);
  BEGIN();
  if (!wasCapturing)
    return invalidHandle;
  *graph = newHandle<Graph>();
  graphs[*graph] = captured;
  ++state.graphs;
  return success;
}
FAKE_EXPORT Result cuGraphInstantiateWithFlags(GraphExec *exec, Graph graph, unsigned long long) {
  BEGIN();
  if (!isHandle(graphs, graph))
    return invalidHandle;
  *exec = newHandle<GraphExec>();
  graphExecs[*exec] = graphs[graph];
  ++state.graphExecs;
  return success;
}
FAKE_EXPORT Result cuGraphUpload(GraphExec exec, Stream) {
  BEGIN();
  return isHandle(graphExecs, exec) ? success : invalidHandle;
}
FAKE_EXPORT Result cuGraphLaunch(GraphExec exec, Stream stream) {
  BEGIN();
  if (!isHandle(graphExecs, exec))
    return invalidHandle;
  graphStreams.insert(stream);
  return enqueue(stream, [actions = graphExecs[exec]] {
    for (const Action &action : actions)
      action();
  });
}
FAKE_EXPORT Result cuGraphExecDestroy(GraphExec exec) {
  BEGIN();
  if (!graphExecs.erase(exec))
    return invalidHandle;
  --state.graphExecs;
  return success;
}
FAKE_EXPORT Result cuGraphDestroy(Graph graph) {
  BEGIN();
  if (!graphs.erase(graph))
    return invalidHandle;
  --state.graphs;
  return success;
}
FAKE_EXPORT Result cuEventCreate(Event *event, unsigned) {
  BEGIN(false);
  *event = newHandle<Event>();
  events[*event] = {};
  ++state.events;
  return success;
}
FAKE_EXPORT Result cuEventDestroy_v2(Event event) {
  BEGIN(false);
  if (!events.erase(event))
    return invalidHandle;
  --state.events;
  return success;
}
FAKE_EXPORT Result cuEventRecord(Event event, Stream stream) {
  BEGIN();
  if (!isHandle(events, event))
    return invalidHandle;
  if (capturing)
    return invalidHandle;
  FakeEvent &recorded = events[event];
  recorded.stream = stream;
  return enqueue(stream, [event, number = ++recorded.recorded] {
    // It may be gone.
    if (auto found = events.find(event); found != events.end()) {
      found->second.done = number;
      found->second.time = fakeClock;
    }
  });
}
FAKE_EXPORT Result cuEventSynchronize(Event event) {
  if (!isHandle(events, event))
    return invalidHandle;
  FakeEvent &awaited = events[event];
  if (awaited.recorded)
    work(awaited.stream, [&] { return awaited.done == awaited.recorded; });
  BEGIN();
  return success;
}
FAKE_EXPORT Result cuEventElapsedTime(float *milliseconds, Event start, Event end) {
  BEGIN(false);
  if (!isHandle(events, start) || !isHandle(events, end))
    return invalidHandle;
  for (Event event : {start, end})
    if (events[event].recorded == 0 || events[event].done != events[event].recorded)
      return invalidHandle;
  *milliseconds = static_cast<float>((events[end].time - events[start].time) * 1e3);
  return success;
}
FAKE_EXPORT Result cuLaunchKernelEx(const LaunchConfig *config, Function function,
                                    void **parameters, void **extra) {
  BEGIN();
  if (extra || config->gridY != 1 || config->gridZ != 1 || config->blockY != 1 ||
      config->blockZ != 1 || config->gridX == 0 || config->blockX == 0)
    return invalidValue;
  const Kernel &kernel = *reinterpret_cast<Kernel *>(function);
  FakeLaunch launch{kernel.name, config->gridX, config->blockX, config->sharedBytes};
  launch.captured = capturing;
  for (unsigned i = 0; i < config->attributeCount; ++i) {
    const LaunchAttribute &attribute = config->attributes[i];
    if (attribute.id == launchProgrammaticStreamSerialization)
      launch.overlap = attribute.programmaticStreamSerializationAllowed != 0;
    else if (attribute.id == launchClusterDimension) {
      launch.cluster = attribute.clusterDimension.x;
      if (attribute.clusterDimension.y != 1 || attribute.clusterDimension.z != 1)
        return invalidValue;
    } else if (attribute.id == launchCooperative) {
      launch.cooperative = attribute.cooperative != 0;
    } else {
      return invalidValue;
    }
  }
  for (size_t i = 0; i < kernel.parameters; ++i)
    launch.arguments.push_back(*static_cast<uint64_t *>(parameters[i]));
  if (static_cast<int>(config->sharedBytes) > state.sharedLimit[kernel.name])
    complain(kernel.name + " has more shared memory than was allowed");
  state.launches.push_back(launch);
  return enqueue(config->stream, [run = kernel.run, launch] {
    state.executed.push_back(launch.kernel);
    run(launch.arguments, launch.grid);
    fakeClock += 1e-6 * launch.grid;
  });
}
