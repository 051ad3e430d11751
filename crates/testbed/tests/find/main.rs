//! A provider by its name, and several of them in one document.

mod conformance;
mod double;
mod finding;
mod several;
