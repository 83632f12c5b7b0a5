// Uses the installed engine: opens the model folder given as argument and decodes a few tokens of it.
#include <cstddef>
#include <iostream>

#include "snapmla/engine.h"
#include "snapmla/error.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: use_engine MODEL_DIR\n";
    return 2;
  }
  try {
    snapmla::Engine engine({.model_dir = argv[1], .max_seq_len = 256});
    engine.submit({.prompt = "In the beginning", .max_tokens = 8, .ignore_eos = true});
    std::size_t num_tokens = 0;
    while (!engine.idle()) {
      for (const snapmla::TokenEvent& event : engine.step()) {
        std::cout << event.text;
        if (event.token >= 0) ++num_tokens;
      }
    }
    std::cout << '\n';
    return num_tokens == 8 ? 0 : 1;
  } catch (const snapmla::Error& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
