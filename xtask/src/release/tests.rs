//! The tasks on generated repositories: a contract, two providers, a bundle and a program.

mod bad_input;
mod checks;
mod cutting;
mod page;
mod publishing;
mod scratch;
