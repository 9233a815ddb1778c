FUZZERS: dict = {}
