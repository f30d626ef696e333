//! Configuration: flag over environment over file over default.
