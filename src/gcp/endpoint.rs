//! Where a service is asked. From the configuration file only: whoever chooses the endpoint is sent keys.

use std::fmt;
use std::net::IpAddr;

use reqwest::Url;

/// A service's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    base: Url,
    trust: Trust,
}

/// How it is known whom one speaks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// TLS, and credentials of the environment.
    Https,
    /// An emulator on this host: no TLS, no proxy, and never credentials.
    Loopback,
}

/// Not an address for a Google service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    #[error("it is no URL; write https://HOST, or http://127.0.0.1:PORT for an emulator on this host")]
    NotAUrl,
    #[error(
        "keys are sent there, so it must be https; http is for an emulator on this host (http://127.0.0.1:PORT) only"
    )]
    NotSecure,
    #[error(
        "write the address of this host as a number (127.0.0.1 or [::1]): what `localhost` means depends on its configuration"
    )]
    NamedLocalhost,
    #[error("it must have a host, and no path, query, fragment, user or password: https://HOST[:PORT]")]
    NotAHost,
}

impl Endpoint {
    /// Where Secret Manager is asked: as configured, else at Google.
    ///
    /// # Errors
    /// Each [`EndpointError`] of what is configured.
    pub fn secret_manager(configured: Option<&str>) -> Result<Self, EndpointError> {
        Self::parse(configured.unwrap_or("https://secretmanager.googleapis.com"))
    }

    /// Where Cloud KMS is asked: as configured, else at Google.
    ///
    /// # Errors
    /// Each [`EndpointError`] of what is configured.
    pub fn kms(configured: Option<&str>) -> Result<Self, EndpointError> {
        Self::parse(configured.unwrap_or("https://cloudkms.googleapis.com"))
    }

    /// # Errors
    /// Each [`EndpointError`].
    pub fn parse(text: &str) -> Result<Self, EndpointError> {
        let base = Url::parse(text).map_err(|_| EndpointError::NotAUrl)?;
        let trust = match base.scheme() {
            "https" => Trust::Https,
            "http" => match base.host_str() {
                Some(host) if is_loopback(host) => Trust::Loopback,
                Some("localhost") => return Err(EndpointError::NamedLocalhost),
                _ => return Err(EndpointError::NotSecure),
            },
            _ => return Err(EndpointError::NotSecure),
        };
        let is_bare = base.path() == "/" && base.query().is_none() && base.fragment().is_none();
        if !is_bare || base.host_str().is_none() || !base.username().is_empty() || base.password().is_some() {
            return Err(EndpointError::NotAHost);
        }
        Ok(Self { base, trust })
    }

    /// Whether Google answers there, and not an emulator or a go-between: regional and private endpoints are names of Google's too.
    #[must_use]
    pub fn is_google(&self) -> bool {
        self.trust == Trust::Https && self.base.host_str().is_some_and(|host| host.ends_with(".googleapis.com"))
    }

    pub(super) const fn trust(&self) -> Trust {
        self.trust
    }

    /// The address of one call; the path is made of checked names.
    pub(super) fn at(&self, path: &str, query: &[(&str, &str)]) -> Url {
        let mut url = self.base.clone();
        url.set_path(path);
        url.query_pairs_mut().extend_pairs(query);
        url
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.base.as_str().trim_end_matches('/'))
    }
}

fn is_loopback(host: &str) -> bool {
    host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_https_or_a_number_of_this_host() {
        let good = [
            ("https://secretmanager.googleapis.com", Trust::Https),
            ("https://secretmanager.europe-west3.rep.googleapis.com/", Trust::Https),
            ("https://127.0.0.1:8443", Trust::Https),
            ("http://127.0.0.1:8787/", Trust::Loopback),
            ("http://127.9.9.9:1", Trust::Loopback),
            ("http://[::1]:8787", Trust::Loopback),
        ];
        for (text, trust) in good {
            let endpoint = Endpoint::parse(text).unwrap();
            assert_eq!((endpoint.trust, endpoint.to_string().as_str()), (trust, text.trim_end_matches('/')));
        }
        assert_eq!(Endpoint::secret_manager(None), Endpoint::parse("https://secretmanager.googleapis.com"));
        assert_eq!(Endpoint::secret_manager(Some("")), Err(EndpointError::NotAUrl));
    }

    /// The settings judge an endpoint when they are loaded, this when keys are about to be sent: one must not take what the other refuses.
    #[test]
    fn the_settings_take_the_endpoints_that_are_taken_here_and_no_others() {
        for text in [
            "https://secretmanager.googleapis.com",
            "https://127.0.0.1:8443/",
            "http://127.0.0.1:8787/",
            "http://[::1]:8787",
            "http://localhost:8787",
            "http://10.0.0.1",
            "http://example.com",
            "https://example.com/v1",
            "https://example.com?x=1",
            "https://example.com#x",
            "https://u:p@example.com",
            "https://u@example.com",
            "ftp://example.com",
            "example.com",
            "https://",
            "",
        ] {
            let (settings, here) = (crate::config::Endpoint::parse(text).is_ok(), Endpoint::parse(text).is_ok());
            assert_eq!(settings, here, "{text}");
        }
    }

    #[test]
    fn only_names_of_googles_are_google() {
        let is_google = |text| Endpoint::parse(text).unwrap().is_google();
        assert!(Endpoint::secret_manager(None).unwrap().is_google());
        for google in ["https://secretmanager.europe-west3.rep.googleapis.com", "https://sm-x.p.googleapis.com:443"] {
            assert!(is_google(google), "{google}");
        }
        for other in [
            "http://127.0.0.1:8787",
            "https://127.0.0.1",
            "https://secretmanager.googleapis.com.example.com",
            "https://evilgoogleapis.com",
            "https://example.com",
        ] {
            assert!(!is_google(other), "{other}");
        }
    }

    #[test]
    fn what_would_send_keys_to_strangers_is_refused() {
        use EndpointError::*;
        let bad = [
            ("", NotAUrl),
            ("secretmanager.googleapis.com", NotAUrl),
            ("http://secretmanager.googleapis.com", NotSecure),
            ("http://127.0.0.1.example.com", NotSecure),
            ("http://0.0.0.0:80", NotSecure),
            ("http://10.0.0.1", NotSecure),
            ("ftp://127.0.0.1", NotSecure),
            ("http://localhost:8787", NamedLocalhost),
            ("https://user@host", NotAHost),
            ("https://:word@host", NotAHost),
            ("https://host/v1", NotAHost),
            ("https://host/?a=b", NotAHost),
            ("https://host/#a", NotAHost),
            ("http://127.0.0.1:1@example.com", NotSecure),
        ];
        for (text, error) in bad {
            assert_eq!(Endpoint::parse(text), Err(error), "{text}");
        }
    }
}
