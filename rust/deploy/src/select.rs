//! Which debug probe to use, of those that are there.

use crate::DeployError;

/// A debug probe.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProbeInfo {
    /// `VID:PID` or `VID:PID:SERIAL`: what names it.
    pub selector: String,
    /// Its kind, in words.
    pub name: String,
    /// Whether this user may use it.
    pub accessible: bool,
}

/// The selector's beginning for a Black Magic Probe; with a serial that is `HOST:PORT` it is one on the
/// network, or one that a test simulates.
const BLACK_MAGIC: &str = "1d50:6018:";

/// The address of a probe on the network, if the selector names one.
pub(crate) fn network_address(selector: &str) -> Option<&str> {
    let address = selector.strip_prefix(BLACK_MAGIC)?;
    let (host, port) = address.rsplit_once(':')?;
    (!host.is_empty() && port.parse::<u16>().is_ok()).then_some(address)
}

/// The probe to use: the one that `wanted` names, or the only one.
pub(crate) fn choose(
    board: &'static str,
    found: &[ProbeInfo],
    wanted: Option<&str>,
) -> Result<String, DeployError> {
    let Some(wanted) = wanted else {
        return match found {
            [] => Err(DeployError::NoProbe { board }),
            [only] => permitted(board, only),
            several => {
                let found = several.iter().map(|probe| probe.selector.clone()).collect();
                Err(DeployError::SeveralProbes { board, found })
            }
        };
    };
    let selector = wanted.trim().to_ascii_lowercase();
    let mut ids = selector.splitn(3, ':');
    let hex = |part: Option<&str>| part.is_some_and(|id| u16::from_str_radix(id, 16).is_ok());
    if !hex(ids.next()) || !hex(ids.next().map(|id| id.split('-').next().unwrap_or(id))) {
        return Err(DeployError::ProbeSelector { selector: wanted.to_owned() });
    }
    if network_address(&selector).is_some() {
        return Ok(selector);
    }
    // A serial may be left out, and may hold letters of either case.
    let named = |probe: &&ProbeInfo| {
        let own = probe.selector.to_ascii_lowercase();
        own == selector || own.strip_prefix(&selector).is_some_and(|rest| rest.starts_with(':'))
    };
    match found.iter().filter(named).collect::<Vec<_>>()[..] {
        [] => {
            let reason = match found {
                [] => "none is connected".to_owned(),
                _ => format!("there are {}", names(found)),
            };
            Err(DeployError::ProbeNotFound { board, selector: wanted.to_owned(), reason })
        }
        [only] => permitted(board, only),
        ref several => {
            let found = several.iter().map(|probe| probe.selector.clone()).collect();
            Err(DeployError::SeveralProbes { board, found })
        }
    }
}

fn permitted(board: &'static str, probe: &ProbeInfo) -> Result<String, DeployError> {
    let selector = probe.selector.clone();
    if probe.accessible { Ok(selector) } else { Err(DeployError::ProbePermission { board, selector }) }
}

fn names(found: &[ProbeInfo]) -> String {
    found.iter().map(|probe| probe.selector.as_str()).collect::<Vec<_>>().join(", ")
}

/// Selectors in a list that is separated by commas: the value of `CBIN_NN_PROBES`, for probes that no bus
/// can list.
pub(crate) fn network_probes(list: &str) -> Vec<ProbeInfo> {
    let selectors = list.split(',').map(str::trim).filter(|selector| network_address(selector).is_some());
    let info = |selector: &str| ProbeInfo {
        selector: selector.to_owned(),
        name: "Black Magic Probe on the network".to_owned(),
        accessible: true,
    };
    selectors.map(info).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(selector: &str, accessible: bool) -> ProbeInfo {
        ProbeInfo { selector: selector.to_owned(), name: "ST-Link".to_owned(), accessible }
    }

    fn chosen(found: &[ProbeInfo], wanted: Option<&str>) -> Result<String, &'static str> {
        choose("this", found, wanted).map_err(|error| {
            assert!(!error.to_string().is_empty());
            error.slug()
        })
    }

    #[test]
    fn the_only_probe_needs_no_name() {
        assert_eq!(chosen(&[], None), Err("no-probe"));
        let one = [probe("0483:374b:066A", true)];
        assert_eq!(chosen(&one, None), Ok("0483:374b:066A".to_owned()));
        let two = [one[0].clone(), probe("0483:374b:077B", true)];
        assert_eq!(chosen(&two, None), Err("several-probes"));
        assert_eq!(chosen(&two, Some("0483:374b")), Err("several-probes"));
        assert_eq!(chosen(&two, Some("0483:374B:077b")), Ok("0483:374b:077B".to_owned()));
        assert_eq!(chosen(&two, Some("0483:374b:09")), Err("probe-not-found"));
        assert_eq!(chosen(&two, Some("1366:0105")), Err("probe-not-found"));
        assert_eq!(chosen(&[], Some("1366:0105")), Err("probe-not-found"));
    }

    #[test]
    fn a_probe_that_this_user_may_not_use_is_said_to_be_there() {
        let locked = [probe("0483:374b:066A", false)];
        assert_eq!(chosen(&locked, None), Err("probe-permission"));
        assert_eq!(chosen(&locked, Some("0483:374b")), Err("probe-permission"));
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for wanted in ["", "stlink", "0483", "0483:", "zzzz:1111", "0483:374b5:x"] {
            assert_eq!(chosen(&[], Some(wanted)), Err("bad-probe"), "{wanted}");
        }
    }

    #[test]
    fn network_probes_need_no_list() {
        let selector = "1d50:6018:127.0.0.1:2000";
        assert_eq!(chosen(&[], Some(selector)), Ok(selector.to_owned()));
        assert_eq!(network_address(selector), Some("127.0.0.1:2000"));
        assert_eq!(network_address("1d50:6018:AB12"), None);
        assert_eq!(network_address("1d50:6018:host:70000"), None);
        assert_eq!(network_probes(&format!("{selector}, nonsense,{selector}")).len(), 2);
    }
}
