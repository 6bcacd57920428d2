"""The numbers of operations that NumPy's and torch's functions call alike."""

# sumexp::LogDomain, csrc/include/sumexp/log_domain.hpp
LOG_DOMAIN = {
    "logaddexp": 0,
    "logsubexp": 1,
    "log1mexp": 2,
    "softplus": 3,
    "logaddexp_vjp": 4,
    "logsubexp_vjp": 5,
    "log1mexp_vjp": 6,
    "softplus_vjp": 7,
    "logaddexp_jvp": 8,
    "logsubexp_jvp": 9,
}
