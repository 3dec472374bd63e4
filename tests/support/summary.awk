# ctest names skipped tests but not why: puts the reasons, which are in the log `last`, before ctest's summary. And leaves
# out, of the output of tests that fail, the cases that have passed without a word: hundreds, in front of the one that has not.
!summary && /^[0-9]+% tests passed/ {
  summary = 1
  while ((getline line < last) > 0) {
    if (line ~ /^[0-9]+\/[0-9]+ Testing: /) { sub(/^[^:]*: /, "", line); test = line }
    if (line ~ /SKIPPED: / && !(test in told)) {
      sub(/.*SKIPPED: /, "", line); print "SKIPPED " test ": " line; told[test]
    }
  }
}
held != "" && /\[       OK \]/ { held = ""; next }
held != "" { print held; held = "" }
/\[ RUN      \]/ { held = $0; next }
/\[----------\]/ { next }
{ print; fflush() }
END { if (held != "") print held }
