// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "HostKernels.h"

#include "sluice/Conversion/Passes.h"
#include "sluice/Formats/Activations.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Parser/Parser.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/FileUtilities.h"

#include <cmath>
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <immintrin.h>
#include <sys/mman.h>
#include <unistd.h>

using namespace sluice;
using namespace sluice::test;
using formats::Encoding;

static constexpr uint8_t kCanary = 0xA5;

Buffer::Buffer(size_t size) : bytes(size) {
  size_t page = sysconf(_SC_PAGESIZE), slots = (size + 63) / 64 * 64,
         usable = (slots + page - 1) / page * page;
  mapped = usable + page;
  mapping = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED ||
      mprotect(static_cast<uint8_t *>(mapping) + usable, page, PROT_NONE) != 0)
    abort();
  memset(mapping, kCanary, usable);
  start = static_cast<uint8_t *>(mapping) + usable - slots;
}

Buffer::Buffer(Buffer &&other) noexcept
    : mapping(std::exchange(other.mapping, nullptr)), mapped(other.mapped), bytes(other.bytes),
      start(other.start) {}

Buffer::~Buffer() {
  if (mapping)
    munmap(mapping, mapped);
}

bool Buffer::untouchedFrom(size_t first) const {
  const uint8_t *end = static_cast<const uint8_t *>(mapping) + mapped - sysconf(_SC_PAGESIZE);
  auto untouched = [](uint8_t byte) { return byte == kCanary; };
  return std::all_of(static_cast<const uint8_t *>(start) + first, end, untouched) &&
         std::all_of(static_cast<const uint8_t *>(mapping), static_cast<const uint8_t *>(start),
                     untouched);
}

std::vector<host::Isa> test::runnableIsas() {
  std::vector<host::Isa> isas;
  std::optional<host::Isa> best = host::detectIsa();
  for (host::Isa isa : {host::Isa::Avx2, host::Isa::Avx512, host::Isa::Avx512Vnni})
    if (best && isa <= *best)
      isas.push_back(isa);
  return isas;
}

std::string test::schedule(host::Isa isa, int64_t accumulators, int64_t positions) {
  return "schedule(#fused.host_schedule<isa = \"" + host::isaName(isa).str() +
         "\", accumulators = " + std::to_string(accumulators) +
         ", positions = " + std::to_string(positions) + ">)";
}

std::unique_ptr<HostKernels> HostKernels::compile(const std::string &text) {
  mlir::DialectRegistry registry;
  registry.insert<model::ModelDialect, quantized::QuantizedDialect, fused::FusedDialect,
                  plan::PlanDialect, mlir::func::FuncDialect, mlir::arith::ArithDialect>();
  mlir::MLIRContext context(registry, mlir::MLIRContext::Threading::DISABLED);
  mlir::OwningOpRef<mlir::ModuleOp> module =
      mlir::parseSourceString<mlir::ModuleOp>(text, &context);
  if (!module) {
    ADD_FAILURE() << "cannot parse\n" << text;
    return nullptr;
  }
  mlir::PassManager pm(&context);
  buildHostCodePipeline(pm);
  if (failed(pm.run(*module))) {
    ADD_FAILURE() << "cannot convert\n" << text;
    return nullptr;
  }
  std::unique_ptr<HostKernels> result(new HostKernels);
  module->walk([&](plan::DispatchOp dispatch) {
    result->dispatches.push_back(
        {dispatch.getKernel().getLeafReference().str(), dispatch.getLaunch().getGrid()});
  });
  auto kernels = module->lookupSymbol<mlir::ModuleOp>(kKernelsModule);
  llvm::Expected<std::string> object = host::compileKernels(kernels);
  if (!object) {
    ADD_FAILURE() << llvm::toString(object.takeError());
    return nullptr;
  }
  llvm::SmallString<64> path;
  int descriptor;
  if (llvm::sys::fs::createTemporaryFile("host-kernels-test", "so", descriptor, path)) {
    ADD_FAILURE() << "cannot make a temporary file";
    return nullptr;
  }
  llvm::FileRemover remover(path);
  llvm::raw_fd_ostream(descriptor, true) << *object;
  result->library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!result->library) {
    ADD_FAILURE() << dlerror();
    return nullptr;
  }
  return result;
}

HostKernels::~HostKernels() {
  if (library)
    dlclose(library);
}

/// Leaves denormal numbers where a kernel called next has its stack memory, and clears the flags of
/// floating-point operations.
[[gnu::noinline]] static void leaveDenormals() {
  volatile float below[1 << 17];
  for (volatile float &number : below)
    number = 1e-40f;
  _mm_setcsr(_mm_getcsr() & ~_MM_EXCEPT_MASK);
}

void HostKernels::run(size_t dispatch, const std::vector<Buffer *> &arguments) {
  ASSERT_LT(dispatch, dispatches.size());
  auto [name, grid] = dispatches[dispatch];
  auto *kernel =
      reinterpret_cast<void (*)(void *const *, int64_t, int64_t)>(dlsym(library, name.c_str()));
  ASSERT_NE(kernel, nullptr) << name;
  std::vector<void *> pointers;
  for (Buffer *argument : arguments)
    pointers.push_back(argument->as<void>());
  metDenormals = false;
  for (auto [begin, end] : {std::pair(grid / 2, grid), std::pair(int64_t(0), grid / 2)}) {
    leaveDenormals();
    kernel(pointers.data(), begin, end);
    metDenormals |= (_mm_getcsr() & _MM_EXCEPT_DENORM) != 0;
  }
  for (auto [number, argument] : llvm::enumerate(arguments))
    EXPECT_TRUE(argument->intact()) << name << " wrote outside argument " << number;
}

std::vector<float> Random::normal(size_t count, float scale) {
  std::normal_distribution<float> distribution(0.0f, scale);
  std::vector<float> values(count);
  for (float &value : values)
    value = distribution(engine);
  return values;
}

std::vector<uint16_t> Random::normalF16(size_t count, float scale) {
  std::vector<uint16_t> halves(count);
  formats::floatToF16(normal(count, scale), halves);
  return halves;
}

Weight::Weight(Encoding format, int64_t rows, int64_t columns, Random &random)
    : format(format), rows(rows), columns(columns) {
  size_t count = rows * columns;
  if (!format.isScaled()) {
    std::vector<float> values = random.normal(count, 0.05f);
    halves.resize(count);
    if (format.element == Encoding::Element::F16)
      formats::floatToF16(values, halves);
    else if (format.element == Encoding::Element::BF16)
      formats::floatToBf16(values, halves);
    else
      floats = values;
    return;
  }
  numbers = formats::EncodedRows(format, rows, columns);
  auto fill = [&](auto &values, int64_t least, int64_t most) {
    for (auto &value : values)
      value = static_cast<std::decay_t<decltype(value)>>(random.integer(least, most));
  };
  if (format.isInteger())
    fill(numbers.q, format.qMin(), format.qMax());
  else // FP8: no NaN
    for (int8_t &q : numbers.q)
      q = static_cast<int8_t>(random.integer(0, 126) | random.integer(0, 1) << 7);
  using Scale = Encoding::Scale;
  if (format.scale == Scale::F16)
    llvm::copy(random.normalF16(numbers.scales.size(), 0.01f), numbers.scales.begin());
  else if (format.scale == Scale::BF16 || format.scale == Scale::F32)
    for (uint32_t &scale : numbers.scales) {
      float value = random.normal(1, 0.001f)[0];
      scale = format.scale == Scale::BF16 ? formats::floatToBf16(value)
                                          : std::bit_cast<uint32_t>(value);
    }
  else if (format.scale == Scale::E8M0) // about 2^-8 ... 1
    fill(numbers.scales, 120, 128);
  else
    fill(numbers.scales, 0, (1 << (format.scale == Scale::E4M3 ? 7 : format.scaleBits())) - 1);
  fill(numbers.zeros, format.qMin(), format.qMax());
  if (format.offset == Encoding::Offset::F16)
    numbers.offsets = random.normalF16(numbers.offsets.size(), 0.05f);
  else
    fill(numbers.offsets, 0, (1 << format.offsetBits()) - 1);
  numbers.supers = random.normalF16(numbers.supers.size(), 0.001f);
}

formats::PackRow Weight::row(int64_t index) const {
  if (index < 0)
    return {};
  formats::PackRow row;
  if (!format.isScaled()) {
    row.elements = floats.empty() ? static_cast<const void *>(&halves[index * columns])
                                  : &floats[index * columns];
    return row;
  }
  return numbers.row(index);
}

float Weight::product(int64_t row, const std::vector<float> &x) const {
  if (!format.isScaled()) {
    // Wider sums than the definition's: the order of float32 additions is not what is tested.
    std::vector<float> rounded(x.size());
    formats::roundActivations(format.element, x, rounded);
    double sum = 0;
    for (int64_t column = 0; column < columns; ++column) {
      int64_t place = row * columns + column;
      float weight = format.element == Encoding::Element::F16 ? formats::f16ToFloat(halves[place])
                     : format.element == Encoding::Element::BF16
                         ? formats::bf16ToFloat(halves[place])
                         : floats[place];
      sum += double(weight) * rounded[column];
    }
    return static_cast<float>(sum);
  }
  std::vector<float> activationScales(formats::activationGroups(columns));
  if (!format.isInteger()) {
    std::vector<float> halves(columns);
    formats::scaleActivations(x, halves, activationScales);
    return formats::scaledProduct(format, numbers.row(row), halves, activationScales);
  }
  std::vector<int16_t> x16(columns);
  formats::quantizeActivations(x, x16, activationScales);
  // Wider sums, likewise.
  double sum = 0;
  int64_t width = formats::accumulationColumns(format, columns), begin = 0;
  formats::EncodedRow numbersOfRow = numbers.row(row);
  for (formats::IntegerSums sums : formats::integerSums(format, numbersOfRow, x16)) {
    int64_t group = begin / format.groupColumns(columns);
    double step = activationScales[begin / formats::activationGroup];
    sum += numbersOfRow.scale(format, group) * step * sums.products +
           numbersOfRow.offset(format, group) * step * sums.inputs;
    begin += width;
  }
  return static_cast<float>(sum);
}

std::string test::tensorType(Encoding format, int64_t rows, int64_t columns,
                             const std::string &layout) {
  static mlir::MLIRContext *context = [] {
    auto *context = new mlir::MLIRContext(mlir::MLIRContext::Threading::DISABLED);
    context->loadDialect<quantized::QuantizedDialect>();
    return context;
  }();
  // "#quantized.encoding<BODY>"
  std::string encoding;
  llvm::raw_string_ostream(encoding) << quantized::EncodingAttr::get(context, format);
  std::string text = "!quantized.tensor<" + std::to_string(rows) + "x" + std::to_string(columns) +
                     "x" + encoding.substr(encoding.find('<') + 1);
  text.pop_back();
  return text + (layout == "rows" ? "" : ", layout = " + layout) + ">";
}

Buffer test::pack(const Weight &weight, const std::vector<int64_t> &rows,
                  formats::Layout::Kind layout) {
  formats::PackedShape shape = llvm::cantFail(
      formats::PackedShape::get(weight.format, {layout}, rows.size(), weight.columns));
  Buffer buffer(shape.bytes());
  for (int64_t tile = 0; tile < shape.tiles(); ++tile) {
    std::vector<formats::PackRow> packRows;
    for (size_t row = tile * shape.rowsPerTile();
         row < std::min<size_t>(rows.size(), (tile + 1) * shape.rowsPerTile()); ++row)
      packRows.push_back(weight.row(rows[row]));
    formats::packTile(
        shape, packRows,
        {buffer.as<uint8_t>() + tile * shape.tileBytes(), static_cast<size_t>(shape.tileBytes())});
  }
  return buffer;
}

std::vector<int64_t> test::orderedRows(const std::vector<formats::RowSegment> &order,
                                       const std::vector<int64_t> &sources) {
  formats::RowOrder rows = llvm::cantFail(formats::RowOrder::get(order, sources));
  std::vector<int64_t> first = {0}, places;
  for (int64_t source : sources)
    first.push_back(first.back() + source);
  for (formats::RowPlace place : rows.places())
    places.push_back(place.empty() ? -1 : first[place.source] + place.row);
  return places;
}

Buffer test::packOrdered(const Weight &weight, const std::vector<formats::RowSegment> &order,
                         const std::vector<int64_t> &sources) {
  return pack(weight, orderedRows(order, sources), formats::Layout::Kind::Lanes);
}

std::vector<int64_t> test::naturalRows(int64_t rows) {
  std::vector<int64_t> result(rows);
  std::iota(result.begin(), result.end(), 0);
  return result;
}

ElementwiseProduct::ElementwiseProduct(const Weight &weight, int64_t tokens, std::string element,
                                       Random &random)
    : weight(weight), tokens(tokens), element(std::move(element)),
      x(numbers(tokens * weight.columns, random, xValues)),
      d(numbers(tokens * weight.rows, random, dValues)),
      g(numbers(tokens * weight.rows, random, gValues)),
      y(tokens * weight.rows * (this->element == "f32" ? 4 : 2)) {}

Buffer ElementwiseProduct::numbers(size_t count, Random &random, std::vector<float> &values) const {
  values = random.normal(count);
  if (element == "f32")
    return Buffer(values);
  std::vector<uint16_t> bits;
  for (float &value : values) {
    bool half = element == "f16";
    bits.push_back(half ? formats::floatToF16(value) : formats::floatToBf16(value));
    value = half ? formats::f16ToFloat(bits.back()) : formats::bf16ToFloat(bits.back());
  }
  return Buffer(bits);
}

std::string ElementwiseProduct::text(const std::string &weightType,
                                     const std::string &schedule) const {
  auto tensor = [&](int64_t width, const std::string &type) {
    return "tensor<" + std::to_string(tokens) + "x" + std::to_string(width) + "x" + type + ">";
  };
  std::string in = tensor(weight.columns, element), wideIn = tensor(weight.columns, "f32"),
              out = tensor(weight.rows, element), wide = tensor(weight.rows, "f32");
  bool narrow = element != "f32";
  auto widened = [&](const std::string &name, const std::string &from, const std::string &to) {
    return narrow ? "    %" + name + "w = arith.extf %" + name + " : " + from + " to " + to + "\n"
                  : std::string();
  };
  std::string w = narrow ? "w" : "";
  // Columns that do not exist would be 0 / 0.
  return "func.func @f(%x: " + in + ", %w: " + weightType + ", %d: " + out + ", %g: " + out +
         ") -> " + out + " {\n  %y = fused.matvec %x weights(%w) segments [" +
         std::to_string(weight.rows) + "] " + schedule + " : " + in + ", " + weightType + " -> " +
         out + "\n  prologue {\n  ^bb0(%in: " + in + "):\n" + widened("in", in, wideIn) +
         "    %one = arith.divf %in" + w + ", %in" + w + " : " + wideIn +
         "\n    %h = arith.truncf %one : " + wideIn + " to " + tensor(weight.columns, "bf16") +
         "\n    %n = arith.negf %h : " + tensor(weight.columns, "bf16") +
         "\n    %nw = arith.extf %n : " + tensor(weight.columns, "bf16") + " to " + wideIn +
         "\n    %p = arith.subf %in" + w + ", %nw : " + wideIn +
         "\n    fused.yield %p : " + wideIn + "\n  } epilogue {\n  ^bb0(%s: " + wide + "):\n" +
         widened("d", out, wide) + widened("g", out, wide) + "    %a = model.silu %s : " + wide +
         "\n    %m = arith.mulf %a, %d" + w + " : " + wide + "\n    %t = arith.addf %m, %d" + w +
         " : " + wide + "\n    %q = arith.divf %t, %g" + w + " : " + wide +
         (narrow ? "\n    %r = arith.truncf %q : " + wide + " to " + out : "") +
         "\n    fused.yield %" + (narrow ? "r" : "q") + " : " + out +
         "\n  }\n  return %y : " + out + "\n}\n";
}

double ElementwiseProduct::error() {
  std::vector<float> result;
  if (element == "f32")
    result = y.copy<float>();
  else
    for (uint16_t bits : y.copy<uint16_t>())
      result.push_back(element == "f16" ? formats::f16ToFloat(bits) : formats::bf16ToFloat(bits));
  std::vector<double> expected;
  for (int64_t token = 0; token < tokens; ++token) {
    std::vector<float> row;
    for (int64_t column = 0; column < weight.columns; ++column)
      row.push_back(xValues[token * weight.columns + column] + 1);
    for (int64_t i = 0; i < weight.rows; ++i) {
      double s = weight.product(i, row), residual = dValues[token * weight.rows + i];
      expected.push_back((s / (1 + std::exp(-s)) * residual + residual) /
                         gValues[token * weight.rows + i]);
    }
  }
  return relativeError(result, expected);
}

double test::relativeError(const std::vector<float> &x, const std::vector<double> &y) {
  EXPECT_EQ(x.size(), y.size());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    difference += (x[i] - y[i]) * (x[i] - y[i]);
    norm += y[i] * y[i];
  }
  return std::sqrt(difference / norm);
}
