#include <zerosched/error.h>

#include <utility>

namespace zerosched {

Error::Error(const std::string& message) : c10::Error({__func__, __FILE__, __LINE__}, message) {}
Error::Error(c10::SourceLocation where, const std::string& message) : c10::Error(where, message) {}
Error::~Error() = default;

CommunicationError::CommunicationError(
    const std::string& message, int rank, std::string collective, std::vector<int> missing_ranks)
    : Error(message),
      rank_(rank),
      collective_(std::move(collective)),
      missing_ranks_(std::move(missing_ranks)) {}
CommunicationError::~CommunicationError() = default;

CheckpointError::CheckpointError(const std::string& message, std::string path)
    : Error(message), path_(std::move(path)) {}
CheckpointError::~CheckpointError() = default;

}  // namespace zerosched
