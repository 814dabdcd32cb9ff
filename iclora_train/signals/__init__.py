"""Control signals read from pictures: what data_prep draws as references and eval reads again from what was made."""
