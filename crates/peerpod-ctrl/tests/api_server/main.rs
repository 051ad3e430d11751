//! The controller on a real API server, with the roles that an installation gives it.

mod bench;
mod life;
mod scale;
