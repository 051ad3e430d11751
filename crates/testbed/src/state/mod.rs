//! What is kept of an experiment on disk: a folder, private to the user, with a plain-text file that is never half written.

mod current;
mod file;
mod folder;
mod keys;
mod lock;
mod secrets;
mod store;

pub use current::{find, point_current};
pub use folder::Folder;
pub use keys::{pretend_access, provide_access};
pub use lock::Lock;
pub use secrets::Secrets;
pub use store::{FORMAT, Saved, Store, Through};

pub(crate) use file::{private_folder, write_private};
