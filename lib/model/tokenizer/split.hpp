#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace atelier::model {

/// The split expression of a tokenizer file. The files write it for Oniguruma; it runs on PCRE2
/// (UTF, Unicode properties, JIT). One difference is translated: `\s` and `\S` become the Unicode
/// property White_Space (PCRE2's own also takes U+180E). Letters and numbers are those of PCRE2's
/// Unicode version (14 for PCRE2 10.42): a script added since may be cut differently.
class SplitExpression {
  public:
    /// `place` ("file: key") is named in errors. Throws Error(input) if PCRE2 refuses the
    /// expression.
    SplitExpression(const std::string& expression, std::string place);
    /// Appends every match, and what lies between matches, in order; nothing is lost.
    void split(std::string_view text, std::vector<std::string_view>& pieces) const;

  private:
    std::shared_ptr<const void> code_;
    std::string place_;
};

}  // namespace atelier::model
