#pragma once

/// One shard of more than 2^31 elements, in one span, of which the kernels run the blocks around 2^31 and the
/// last ones: what they wrote must be at its place and nowhere near where a 32-bit index would point.
bool run_beyond_int();
