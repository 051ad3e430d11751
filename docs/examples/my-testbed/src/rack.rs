//! The rack: a file that lists machines, and beside it a folder with a file for each that is booked.

use std::{collections::BTreeMap, io, net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};
use testbed::{Error, Result};
use tokio::{fs, task::spawn_blocking};

/// The rack as its file says.
pub(crate) struct Rack {
    pub(crate) slots: Vec<Slot>,
    /// The first and the last of the addresses that nobody has.
    pub(crate) pool: Option<(IpAddr, IpAddr)>,
    booked: PathBuf,
}

/// A machine of the rack.
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) port: u16,
    pub(crate) kind: String,
}

/// Who has a machine.
#[derive(PartialEq, Serialize, Deserialize)]
pub(crate) struct Booking {
    pub(crate) experiment: String,
    pub(crate) machine: String,
}

impl Booking {
    pub(crate) fn new(experiment: &str, machine: &str) -> Self {
        Self { experiment: experiment.to_owned(), machine: machine.to_owned() }
    }

    pub(crate) fn is(&self, experiment: &str, machine: &str) -> bool {
        self.experiment == experiment && self.machine == machine
    }
}

impl Rack {
    pub(crate) async fn read(file: PathBuf) -> Result<Self> {
        let text = fs::read_to_string(&file).await.map_err(|e| {
            Error::config("cannot read the list of machines").with("rack", file.display()).with_source(e)
        })?;
        let mut rack = Self { slots: Vec::new(), pool: None, booked: file.with_extension("booked") };
        for (number, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
            if !words.is_empty() && rack.take(&words).is_none() {
                let place = format!("{}:{}", file.display(), number + 1);
                return Err(Error::config(format!("{place}: {line:?} is no machine"))
                    .with("write", "NAME ADDRESS PORT KIND, or: free FIRST LAST"));
            }
        }
        Ok(rack)
    }

    fn take(&mut self, words: &[&str]) -> Option<()> {
        match *words {
            ["free", start, end] => self.pool = Some((start.parse().ok()?, end.parse().ok()?)),
            [name, address, port, kind]
                if !name.contains('/') && !self.slots.iter().any(|s| s.name == name) =>
            {
                let (port, address) = (port.parse().ok()?, address.to_owned());
                self.slots.push(Slot { name: name.to_owned(), address, port, kind: kind.to_owned() });
            }
            _ => return None,
        }
        Some(())
    }

    /// Returns who has which machine.
    pub(crate) async fn bookings(&self) -> Result<BTreeMap<String, Booking>> {
        let mut bookings = BTreeMap::new();
        for slot in &self.slots {
            match fs::read(self.booked.join(&slot.name)).await {
                Ok(bytes) => {
                    let booking = serde_json::from_slice(&bytes).map_err(|e| self.error(e.into()))?;
                    bookings.insert(slot.name.clone(), booking);
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(self.error(e)),
            }
        }
        Ok(bookings)
    }

    /// Books a machine, unless somebody else was faster.
    pub(crate) async fn book(&self, slot: &Slot, booking: &Booking) -> Result<bool> {
        let (folder, place, booking) =
            (self.booked.clone(), self.booked.join(&slot.name), serde_json::to_vec(booking));
        let work = move || {
            std::fs::create_dir_all(&folder)?;
            // Written beside and then named: nobody ever reads half of it, and the name goes to one only.
            let mut draft = tempfile::NamedTempFile::new_in(&folder)?;
            io::Write::write_all(&mut draft, &booking?)?;
            match draft.persist_noclobber(place) {
                Ok(_) => Ok(true),
                Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
                Err(e) => Err(e.error),
            }
        };
        spawn_blocking(work).await.unwrap_or_else(|e| Err(e.into())).map_err(|e| self.error(e))
    }

    /// Frees the machines of an experiment for which `which` holds, and returns their names in it.
    pub(crate) async fn free(
        &self,
        experiment: &str,
        which: impl Fn(&Booking) -> bool,
    ) -> Result<Vec<String>> {
        let mut freed = Vec::new();
        for (slot, booking) in self.bookings().await? {
            if booking.experiment == experiment && which(&booking) {
                match fs::remove_file(self.booked.join(slot)).await {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(self.error(e)),
                    _ => freed.push(booking.machine),
                }
            }
        }
        Ok(freed)
    }

    fn error(&self, e: io::Error) -> Error {
        Error::internal("the bookings cannot be kept").with("folder", self.booked.display()).with_source(e)
    }
}
