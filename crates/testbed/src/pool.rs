//! Takes free addresses out of pools, and gives them back.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use cloud_providers::{Error, ErrorKind, Result, Retry};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{Network, NetworkRequest, Obtained, Pool};

/// The family of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Returns the family of `ip`.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl Pool {
    /// Returns the pool that the document gives, if it gives one.
    ///
    /// A network's `cidr` alone says nothing about which of its addresses are free.
    pub fn of(request: &NetworkRequest) -> Option<Self> {
        let (start, end) = request.start.zip(request.end).unzip();
        if start.is_none() && request.extra_ips.is_empty() {
            return None;
        }
        let mut pool = Self { start, end, ..Self::default() };
        pool.extra_ips.clone_from(&request.extra_ips);
        Some(pool)
    }

    /// Takes a free address: the last of `extra_ips` that is free, else the last of the range that is.
    ///
    /// An owner who has one of that family gets the same again. Without an owner each call takes another one.
    ///
    /// ```
    /// use testbed::Pool;
    ///
    /// let mut pool = Pool::new("192.0.2.8".parse()?, "192.0.2.9".parse()?);
    /// assert_eq!(pool.take(Some("vip"), None)?.to_string(), "192.0.2.9");
    /// assert_eq!(pool.take(Some("vip"), None)?.to_string(), "192.0.2.9");
    /// assert_eq!(pool.take(None, None)?.to_string(), "192.0.2.8");
    /// assert!(pool.take(None, None).is_err());
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Capacity`] when none is left.
    pub fn take(&mut self, owner: Option<&str>, family: Option<Family>) -> Result<IpAddr> {
        let fits = |ip: &IpAddr| family.is_none_or(|family| Family::of(*ip) == family);
        if let Some(owner) = owner.filter(|o| !o.is_empty())
            && let Some((ip, _)) = self.taken.iter().find(|(ip, other)| *other == owner && fits(ip))
        {
            return Ok(*ip);
        }
        let extra = self.extra_ips.iter().rev().copied().find(|ip| fits(ip) && self.is_free(*ip));
        let Some(ip) = extra.or_else(|| self.last_of_range().filter(fits)) else {
            return Err(self.exhausted(family));
        };
        self.taken.insert(ip, owner.unwrap_or_default().to_owned());
        Ok(ip)
    }

    /// Gives an address back.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] when it is not of this pool, or nobody took it.
    pub fn give_back(&mut self, ip: IpAddr) -> Result<()> {
        if self.taken.remove(&ip).is_some() {
            return Ok(());
        }
        let said =
            if self.contains(ip) { "nobody took the address" } else { "the address is not of this pool" };
        Err(Error::new(ErrorKind::NotFound, said).with("address", ip).with("pool", self.describe()))
    }

    /// Says whether `ip` belongs to the pool, free or not.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.extra_ips.contains(&ip)
            || self.start.zip(self.end).is_some_and(|(start, end)| {
                Family::of(start) == Family::of(ip) && (start..=end).contains(&ip)
            })
    }

    /// Returns how many addresses are free; [`u128::MAX`] stands for that many or more.
    pub fn free(&self) -> u128 {
        let range = match self.start.zip(self.end) {
            Some((start, end)) if Family::of(start) == Family::of(end) && start <= end => {
                (number(end) - number(start)).saturating_add(1)
            }
            _ => 0,
        };
        let in_range = |ip: &IpAddr| self.start.zip(self.end).is_some_and(|(s, e)| (s..=e).contains(ip));
        let beside: BTreeSet<&IpAddr> = self.extra_ips.iter().filter(|ip| !in_range(ip)).collect();
        let gone: BTreeSet<&IpAddr> =
            self.taken.keys().chain(&self.reserved).filter(|ip| self.contains(**ip)).collect();
        range.saturating_add(beside.len() as u128).saturating_sub(gone.len() as u128)
    }

    /// Returns the families of its addresses, free or not.
    fn families(&self) -> BTreeSet<Family> {
        self.start.iter().chain(&self.extra_ips).map(|ip| Family::of(*ip)).collect()
    }

    /// Describes range and single addresses in a few words.
    pub fn describe(&self) -> String {
        let range = self.start.zip(self.end).map(|(start, end)| format!("{start} to {end}"));
        let extra = self.extra_ips.iter().map(ToString::to_string);
        let parts: Vec<String> = range.into_iter().chain(extra).collect();
        if parts.is_empty() { "no addresses".into() } else { parts.join(", ") }
    }

    fn is_free(&self, ip: IpAddr) -> bool {
        !self.taken.contains_key(&ip) && !self.reserved.contains(&ip)
    }

    /// Returns the last free address of the range. It steps over those that are not free only: a range may hold 2^64.
    fn last_of_range(&self) -> Option<IpAddr> {
        let (start, mut ip) = self.start.zip(self.end)?;
        if Family::of(start) != Family::of(ip) {
            return None;
        }
        while ip >= start {
            if self.is_free(ip) {
                return Some(ip);
            }
            ip = before(ip)?;
        }
        None
    }

    fn exhausted(&self, family: Option<Family>) -> Error {
        let kind = ErrorKind::Capacity { zone: None, instance_type: None };
        let what = match family {
            Some(Family::V4) => "IPv4 address",
            Some(Family::V6) => "IPv6 address",
            None => "address",
        };
        let gone = self.taken.keys().chain(&self.reserved).collect::<BTreeSet<_>>().len();
        Error::new(kind, format!("no free {what} is left; give one back, or make the pool greater"))
            .with("pool", self.describe())
            .with("taken or in use", gone)
            .with_retry(Retry::Never)
    }
}

impl Network {
    /// Makes the network that the document describes, with its pool if it gives one.
    pub fn of(request: &NetworkRequest) -> Self {
        let mut network = Self {
            name: request.name.clone(),
            roles: request.roles.clone(),
            cidr: request.cidr,
            gateway: request.gateway,
            dns: request.dns.clone(),
            pool: Pool::of(request),
        };
        network.reserve(&BTreeSet::new());
        network
    }

    /// Keeps back what nobody may be given: the gateway, the network's own addresses, and `used`.
    fn reserve(&mut self, used: &BTreeSet<IpAddr>) {
        let own = self.cidr.into_iter().flat_map(own_addresses).chain(self.gateway);
        let Some(pool) = &mut self.pool else { return };
        let kept: BTreeSet<IpAddr> =
            own.chain(used.iter().copied()).filter(|ip| pool.contains(*ip)).collect();
        pool.reserved.extend(kept);
    }
}

impl Obtained {
    /// Takes a free address of `network`, by name or role; of the first network with a pool when none is named.
    ///
    /// Gateways, name servers and the addresses of hosts are never among them. See [`Pool::take`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] when there is no such network, [`ErrorKind::Unsupported`] when it has no pool,
    /// [`ErrorKind::Capacity`] when no address is left.
    pub fn take_ip(
        &mut self,
        network: Option<&str>,
        owner: Option<&str>,
        family: Option<Family>,
    ) -> Result<IpAddr> {
        self.reserve();
        let known: Vec<String> = self.networks.iter().map(|n| n.name.clone()).collect();
        let is_meant = |n: &&mut Network| match network {
            Some(name) => n.name == name || n.roles.iter().any(|role| role == name),
            None => true,
        };
        let mut meant: Vec<&mut Network> = self.networks.iter_mut().filter(is_meant).collect();
        if meant.is_empty() {
            return Err(match network {
                Some(name) => Error::new(ErrorKind::NotFound, "there is no such network")
                    .with("network", name)
                    .with("known", known.join(", ")),
                None => Error::unsupported("the provider told of no network, so there are no free addresses"),
            });
        }
        // Whoever has an address already gets it again, whatever other pools have. An empty pool is an error and no reason
        // to take from another network, whose addresses lead elsewhere.
        let suits = |pool: &&mut Pool| family.is_none_or(|family| pool.families().contains(&family));
        let mut pools: Vec<&mut Pool> =
            meant.iter_mut().filter_map(|n| n.pool.as_mut()).filter(suits).collect();
        let has = |pool: &Pool| {
            let fits = |ip: &IpAddr| family.is_none_or(|family| Family::of(*ip) == family);
            let named = owner.filter(|owner| !owner.is_empty());
            named.is_some_and(|owner| pool.taken.iter().any(|(ip, other)| other == owner && fits(ip)))
        };
        let index = pools.iter().position(|pool| has(pool)).unwrap_or_default();
        if let Some(pool) = pools.get_mut(index) {
            return pool.take(owner, family);
        }
        let what = match family {
            Some(Family::V4) => "free IPv4 addresses",
            Some(Family::V6) => "free IPv6 addresses",
            None => "free addresses",
        };
        let message =
            format!("the network has no pool of {what}; say which are free with start and end, or extra_ips");
        let named = network.map_or_else(|| known.join(", "), ToString::to_string);
        Err(Error::unsupported(message).with("network", named))
    }

    /// Gives an address back to the pool that it is of.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] when it is of no pool, or nobody took it.
    pub fn give_back_ip(&mut self, ip: IpAddr) -> Result<()> {
        let mut pools: Vec<&mut Pool> = self.networks.iter_mut().filter_map(|n| n.pool.as_mut()).collect();
        let owner = pools.iter().position(|p| p.taken.contains_key(&ip));
        match owner.or_else(|| pools.iter().position(|p| p.contains(ip))) {
            Some(index) => pools[index].give_back(ip),
            None => {
                let all: Vec<String> = pools.iter().map(|p| p.describe()).collect();
                Err(Error::new(ErrorKind::NotFound, "the address is of no pool of this experiment")
                    .with("address", ip)
                    .with("pools", if all.is_empty() { "none".into() } else { all.join("; ") }))
            }
        }
    }

    /// Keeps back in every pool what is in use, also when it came to be in use after the pool did.
    fn reserve(&mut self) {
        let mut used: BTreeSet<IpAddr> = self.networks.iter().filter_map(|n| n.gateway).collect();
        used.extend(self.networks.iter().flat_map(|n| &n.dns));
        for host in &self.hosts {
            used.extend(&host.addresses);
            used.extend(host.address.parse::<IpAddr>().ok());
        }
        self.networks.iter_mut().for_each(|n| n.reserve(&used));
    }
}

/// Returns the addresses of a network that no host can have.
fn own_addresses(net: IpNet) -> Vec<IpAddr> {
    match net {
        IpNet::V4(net) if net.prefix_len() < 31 => vec![net.network().into(), net.broadcast().into()],
        // The first one of IPv6 is that of its routers.
        IpNet::V6(net) if net.prefix_len() < 127 => vec![net.network().into()],
        _ => Vec::new(),
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

fn before(ip: IpAddr) -> Option<IpAddr> {
    Some(match ip {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits().checked_sub(1)?).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits().checked_sub(1)?).into(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Host;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn single_addresses_go_first_then_the_range_from_its_end() {
        let mut pool = Pool::new(ip("10.0.0.5"), ip("10.0.0.6"));
        pool.extra_ips = vec![ip("192.0.2.1"), ip("192.0.2.2")];
        let order: Vec<String> = (0..4).map(|_| pool.take(None, None).unwrap().to_string()).collect();
        assert_eq!(order, ["192.0.2.2", "192.0.2.1", "10.0.0.6", "10.0.0.5"]);
        let error = pool.take(None, None).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Capacity { .. }));
        assert!(error.to_string().contains("no free address is left"), "{error}");
        assert!(error.to_string().contains("10.0.0.5 to 10.0.0.6, 192.0.2.1, 192.0.2.2"), "{error}");
    }

    #[test]
    fn an_owner_keeps_an_address_and_a_given_back_one_is_free_again() {
        let mut pool = Pool::new(ip("10.0.0.1"), ip("10.0.0.9"));
        let vip = pool.take(Some("vip"), None).unwrap();
        assert_eq!(pool.take(Some("vip"), Some(Family::V4)).unwrap(), vip);
        assert_ne!(pool.take(Some("other"), None).unwrap(), vip);
        pool.give_back(vip).unwrap();
        assert!(pool.give_back(vip).unwrap_err().to_string().contains("nobody took"));
        assert_eq!(pool.take(Some("third"), None).unwrap(), vip);
        let foreign = pool.give_back(ip("10.0.0.10")).unwrap_err();
        assert!(foreign.to_string().contains("not of this pool"), "{foreign}");
    }

    #[test]
    fn a_great_range_costs_no_more_than_a_small_one() {
        let mut pool = Pool::new(ip("2001:db8::"), ip("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"));
        for _ in 0..100 {
            pool.take(None, Some(Family::V6)).unwrap();
        }
        assert!(pool.take(None, Some(Family::V4)).is_err());
        assert!(pool.free() > 1 << 90);
        let mut all = Pool::new(ip("::"), ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"));
        all.take(None, None).unwrap();
        assert!(all.free() > 1 << 127);
        let mut none = Pool::new(ip("0.0.0.0"), ip("0.0.0.0"));
        assert_eq!(none.take(None, None).unwrap(), ip("0.0.0.0"));
        assert!(none.take(None, None).is_err());
    }

    #[test]
    fn what_is_in_use_is_never_handed_out() {
        let mut request = NetworkRequest { name: "n".into(), ..NetworkRequest::default() };
        request.cidr = Some("10.0.0.0/29".parse().unwrap());
        request.gateway = Some(ip("10.0.0.1"));
        request.start = Some(ip("10.0.0.0"));
        request.end = Some(ip("10.0.0.7"));
        let mut host = Host::new("a", "10.0.0.6", "a");
        host.addresses = vec![ip("10.0.0.5")];
        let mut obtained = Obtained::new(vec![host], vec![Network::of(&request)]);
        let mut got = Vec::new();
        while let Ok(ip) = obtained.take_ip(Some("n"), None, None) {
            got.push(ip.to_string());
        }
        assert_eq!(got, ["10.0.0.4", "10.0.0.3", "10.0.0.2"]);
        obtained.give_back_ip(ip("10.0.0.3")).unwrap();
        assert!(obtained.give_back_ip(ip("10.0.0.1")).is_err());
        assert!(obtained.give_back_ip(ip("192.0.2.1")).unwrap_err().to_string().contains("of no pool"));
        assert_eq!(obtained.take_ip(None, Some("me"), None).unwrap(), ip("10.0.0.3"));
        assert_eq!(obtained.networks[0].pool.as_ref().unwrap().free(), 0);
    }

    #[test]
    fn a_network_without_a_pool_says_so() {
        let mut obtained = Obtained::default();
        assert!(obtained.take_ip(None, None, None).unwrap_err().to_string().contains("no network"));
        obtained.networks.push(Network { name: "n".into(), ..Network::default() });
        let error = obtained.take_ip(Some("n"), None, None).unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("start and end"), "{error}");
        let error = obtained.take_ip(Some("m"), None, None).unwrap_err();
        assert!(error.to_string().contains("known: n"), "{error}");
    }

    #[test]
    fn an_owner_is_found_in_whatever_pool_it_has() {
        let network = |name: &str, end: &str| {
            let pool = Some(Pool::new(ip(end), ip(end)));
            Network { name: name.into(), pool, ..Network::default() }
        };
        let mut obtained = Obtained::new(vec![], vec![network("a", "10.0.0.1"), network("b", "10.0.1.1")]);
        let vip = obtained.take_ip(Some("b"), Some("vip"), None).unwrap();
        assert_eq!(obtained.take_ip(None, Some("vip"), None).unwrap(), vip);
        assert_eq!(obtained.take_ip(None, None, None).unwrap(), ip("10.0.0.1"));
        let error = obtained.take_ip(None, None, None).unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Capacity { .. }),
            "nothing is taken from another network: {error}"
        );
    }

    #[test]
    fn a_family_finds_the_network_that_has_it() {
        let network = |name: &str, start: &str, end: &str| {
            let pool = Some(Pool::new(ip(start), ip(end)));
            Network { name: name.into(), roles: vec!["lan".into()], pool, ..Network::default() }
        };
        let four = network("four", "10.0.0.1", "10.0.0.2");
        let mut obtained = Obtained::new(vec![], vec![four.clone(), network("six", "fd00::1", "fd00::2")]);
        assert_eq!(obtained.take_ip(Some("lan"), None, Some(Family::V6)).unwrap(), ip("fd00::2"));
        assert_eq!(obtained.take_ip(Some("lan"), Some("vip"), None).unwrap(), ip("10.0.0.2"));
        assert_eq!(obtained.take_ip(Some("lan"), Some("vip"), Some(Family::V6)).unwrap(), ip("fd00::1"));
        let mut obtained = Obtained::new(vec![], vec![four]);
        let error = obtained.take_ip(None, None, Some(Family::V6)).unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("no pool of free IPv6 addresses"), "{error}");
    }

    fn pools() -> impl Strategy<Value = Pool> {
        let v4 = |n: u8| IpAddr::from([10, 0, 0, n]);
        let v6 = |n: u8| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(n)]);
        let range = (any::<bool>(), 0..40_u8, 0..40_u8);
        let extra = prop::collection::vec((any::<bool>(), 30..60_u8), 0..6);
        let reserved = prop::collection::btree_set(0..60_u8, 0..6);
        (range, extra, reserved).prop_map(move |((six, a, b), extra, reserved)| {
            let ip = |six: bool, n: u8| if six { v6(n) } else { v4(n) };
            let mut pool = Pool::new(ip(six, a.min(b)), ip(six, a.max(b)));
            pool.extra_ips = extra.into_iter().map(|(six, n)| ip(six, n)).collect();
            pool.reserved = reserved.into_iter().map(|n| ip(six, n)).collect();
            pool
        })
    }

    proptest! {
        #[test]
        fn every_free_address_is_handed_out_once(mut pool in pools()) {
            let promised = pool.free();
            let mut got = BTreeSet::new();
            while let Ok(ip) = pool.take(None, None) {
                prop_assert!(got.insert(ip), "{} twice", ip);
                prop_assert!(pool.contains(ip) && !pool.reserved.contains(&ip));
            }
            prop_assert_eq!(got.len() as u128, promised);
            prop_assert_eq!(pool.free(), 0);
            for ip in &got {
                pool.give_back(*ip).unwrap();
            }
            prop_assert_eq!(pool.free(), promised);
            prop_assert!(pool.taken.is_empty());
        }

        #[test]
        fn a_pool_survives_the_disk(pool in pools()) {
            let text = serde_json::to_string(&pool).unwrap();
            prop_assert_eq!(serde_json::from_str::<Pool>(&text).unwrap(), pool);
        }
    }
}
