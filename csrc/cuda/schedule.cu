#include "schedule.h"

#include <algorithm>

namespace pytl::cuda {
namespace {

FormId form_of(const Parameter& p) {
  const bool start_differs = p.start && p.start_dtype != p.dtype;
  const bool is_full = p.penalty || p.state[2], is_narrow = p.moments != MomentFormat::full;
  switch (p.dtype) {
    case DType::float32:
      if (is_narrow) return FormId::narrow_float32;
      if (is_full || (start_differs && p.start_dtype != DType::bfloat16)) return FormId::full_float32;
      return start_differs ? FormId::float32_from_bfloat16 : FormId::float32;
    case DType::bfloat16:
      if (is_narrow) return FormId::narrow_bfloat16;
      return is_full || start_differs ? FormId::full_bfloat16 : FormId::bfloat16;
    case DType::float16:
      if (is_narrow) return FormId::narrow_float16;
      return is_full || start_differs ? FormId::full_float16 : FormId::float16;
    case DType::float64:
      break;
  }
  return FormId::full_float64;
}

// A multiple of kPiece, so that vectors begin where 16 bytes do.
int64_t piece_length(int64_t parameter_length) {
  const int64_t share = (parameter_length + kMostPieces - 1) / kMostPieces;
  return std::max<int64_t>(1, (share + kPiece - 1) / kPiece) * kPiece;
}

}  // namespace

Schedule::Schedule(const std::vector<Parameter>& parameters)
    : first_piece(parameters.size()), piece_count(parameters.size()) {
  for (size_t form = 0; form < kForms; form++) {
    std::vector<int32_t> members;
    for (size_t i = 0; i < parameters.size(); i++)
      if (static_cast<size_t>(form_of(parameters[i])) == form) members.push_back(static_cast<int32_t>(i));
    const auto is_small = [&](int32_t i) { return parameters[i].length <= kSmall; };
    const auto large = std::stable_partition(members.begin(), members.end(), is_small);
    ranges[form].begin = static_cast<int32_t>(pieces.size());
    add_small(members.begin(), large);
    for (auto i = large; i != members.end(); ++i) add_large(*i, parameters[*i].length);
    ranges[form].end = static_cast<int32_t>(pieces.size());
  }
}

void Schedule::add_small(Members begin, Members end) {
  for (auto i = begin; i < end; i += std::min<int64_t>(kWarps, end - i))
    pieces.push_back({static_cast<int64_t>(small.size()) + (i - begin), -1,
                      static_cast<int32_t>(std::min<int64_t>(kWarps, end - i))});
  small.insert(small.end(), begin, end);
}

void Schedule::add_large(int32_t parameter, int64_t length) {
  const int64_t piece = piece_length(length);
  first_piece[parameter] = static_cast<int32_t>(pieces.size());
  for (int64_t offset = 0; offset < length; offset += piece)
    pieces.push_back({offset, parameter, static_cast<int32_t>(std::min(piece, length - offset))});
  piece_count[parameter] = static_cast<int32_t>(pieces.size()) - first_piece[parameter];
}

}  // namespace pytl::cuda
