"""What is known of SQL functions: which vary, which depend on order, which add floating point. Names in lower case.

A table of our own, because no engine's catalogue says which aggregates depend on the order of their rows; an
aggregate that is in none of these sets is refused.
"""

VOLATILE = frozenset(
    """random rand randn setseed uuid uuidv4 uuidv7 gen_random_uuid nextval currval randstr uniform shuffle
    monotonically_increasing_id spark_partition_id""".split()
)
CLOCK = frozenset(
    """now today current_date current_time current_timestamp localtime localtimestamp get_current_timestamp
    get_current_time transaction_timestamp current_localtime current_localtimestamp curdate unix_timestamp
    current_setting getvariable current_user current_role session_user user current_schema current_schemas
    current_database current_catalog current_query current_connection_id current_query_id current_transaction_id
    txid_current current_timezone version pg_backend_pid""".split()
)
# The same that stand without parentheses.
BARE_CLOCK = frozenset(
    "current_date current_time current_timestamp localtime localtimestamp current_user session_user current_role".split()
)
READERS = frozenset(
    """read_csv read_csv_auto read_json read_json_auto read_json_objects read_json_objects_auto read_ndjson
    read_ndjson_auto read_ndjson_objects read_parquet read_text read_blob parquet_scan parquet_metadata parquet_schema
    parquet_file_metadata parquet_kv_metadata parquet_bloom_probe sniff_csv glob query query_table getenv arrow_scan
    pandas_scan python_scan sqlite_scan postgres_scan postgres_query mysql_scan mysql_query iceberg_scan delta_scan
    seq_scan read_duckdb read_xlsx st_read which_secret duckdb_secrets duckdb_settings duckdb_tables duckdb_views
    duckdb_functions duckdb_databases pragma_database_size pragma_version input_file_name read_files""".split()
)
ENGINE_HASH = frozenset("hash xxhash64 hash32 crc32 checksum".split())
APPROXIMATE = frozenset(
    """approx_quantile approx_count_distinct approx_top_k reservoir_quantile approx_percentile percentile_approx
    approx_top_sum approx_distinct hll_sketch_agg""".split()
)
# Sums that rounding makes depend on order; the first row is exact over integers and decimals.
EXACT_SUMS = frozenset("sum avg mean".split())
FLOAT_SUMS = EXACT_SUMS | frozenset(
    """fsum sumkahan kahan_sum favg sum_no_overflow product stddev stddev_pop stddev_samp std variance var_pop var_samp
    covar_pop covar_samp corr regr_avgx regr_avgy regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy skewness
    kurtosis kurtosis_pop sem entropy geomean geometric_mean weighted_avg wavg""".split()
)
ORDERED = frozenset(
    """first last any_value arbitrary first_value last_value list array_agg string_agg group_concat listagg collect_list
    collect_set array_concat_agg mode arg_max arg_min argmax argmin max_by min_by arg_max_null arg_min_null
    arg_max_nulls_last arg_min_nulls_last""".split()
)
EXTREMES = frozenset(name for name in ORDERED if name.startswith("arg") or name.endswith("_by"))
NUMBERED = frozenset("row_number lag lead first_value last_value nth_value ntile first last".split())
SAFE_AGGREGATES = frozenset(
    """count count_star min max bool_and bool_or every some any bit_and bit_or bit_xor bitstring_agg median quantile
    quantile_cont quantile_disc percentile_cont percentile_disc percentile mad histogram histogram_exact
    histogram_values count_if countif regr_count grouping grouping_id rank dense_rank percent_rank cume_dist
    is_histogram_other_bin max_value min_value equi_width_bins""".split()
)
