//! What goes wrong with EC2 and must not go wrong with the provider, over EC2 in memory and a virtual clock.

mod calls;
mod capacity;
mod deletions;
mod launches;
mod parts;
mod setup;
mod templates;
mod types;
mod verification;
mod volumes;
