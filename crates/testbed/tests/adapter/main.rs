//! Any provider as a testbed, over a cloud in memory whose calls are scripted.

mod faults;
mod life;
mod random;
mod setup;
