//! The calls over the vendor's SDK against small servers that answer as AWS does: what is sent, what is read, how failures
//! are described, and where credentials and regions come from.

mod child;
mod credentials;
mod errors;
mod hostile;
mod metadata;
mod pages;
mod requests;
mod server;
