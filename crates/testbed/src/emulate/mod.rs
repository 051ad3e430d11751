//! Delay, rate and loss between machines: `tc` on each of them, over SSH.
//!
//! What goes to nobody of the experiment, such as our own SSH, is never touched.

mod apply;
mod batch;
mod pairs;

pub use apply::{Shown, apply, clear, show};
pub use batch::{Target, batch};
pub use pairs::{Pair, pairs};
