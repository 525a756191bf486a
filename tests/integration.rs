//! The one integration binary.

#[cfg(test)]
mod keyfile;
#[cfg(test)]
mod process;
