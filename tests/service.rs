//! The service without a process around it: real keys and both stores, thousands of times.

mod racing;
