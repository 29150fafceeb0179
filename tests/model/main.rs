//! The refresh engine as a model whose every order of events is explored.
