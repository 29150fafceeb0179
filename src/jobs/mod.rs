//! The timetable: what runs by the clock.
