"""The 22 queries of TPC-H on DataFrames, with the specification's parameters for validation.

Joins are in the order that a reader would think of: what is few first. Subqueries are joins (semi, anti, with one row) or window functions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from smallpond_mpi.dataframe import DataFrame, Session

REVENUE = "sum(l_extendedprice * (1 - l_discount))"
LATE = "l_receiptdate > l_commitdate"


@dataclass(frozen=True)
class Tables:
    """The eight tables, and of which scale factor they are (Q11 depends on it)."""

    customer: DataFrame
    lineitem: DataFrame
    nation: DataFrame
    orders: DataFrame
    part: DataFrame
    partsupp: DataFrame
    region: DataFrame
    supplier: DataFrame
    scale: float

    @staticmethod
    def read(session: Session, files: Mapping[str, list[str]], scale: float) -> "Tables":
        """The tables as Parquet files."""
        return Tables(scale=scale, **{name: session.read_parquet(paths) for name, paths in files.items()})

    def nations_of(self, region: str) -> DataFrame:
        """The nations of a region."""
        return self.nation.join(
            self.region.filter(f"r_name = '{region}'"), on={"n_regionkey": "r_regionkey"}, how="semi"
        )

    def suppliers_of(self, nations: DataFrame) -> DataFrame:
        """Suppliers, with the columns of their nations."""
        return self.supplier.join(nations, on={"s_nationkey": "n_nationkey"})


def q01(t: Tables) -> DataFrame:
    """Pricing summary report."""
    return (
        t.lineitem.filter("l_shipdate <= DATE '1998-12-01' - INTERVAL 90 DAY")
        .group_by("l_returnflag", "l_linestatus")
        .agg(
            sum_qty="sum(l_quantity)",
            sum_base_price="sum(l_extendedprice)",
            sum_disc_price=REVENUE,
            sum_charge="sum(l_extendedprice * (1 - l_discount) * (1 + l_tax))",
            avg_qty="avg(l_quantity)",
            avg_price="avg(l_extendedprice)",
            avg_disc="avg(l_discount)",
            count_order="count(*)",
        )
        .sort(["l_returnflag", "l_linestatus"])
    )


def q02(t: Tables) -> DataFrame:
    """Minimum cost supplier."""
    parts = t.part.filter("p_size = 15 AND p_type LIKE '%BRASS'").select("p_partkey", "p_mfgr")
    return (
        t.partsupp.join(parts, on={"ps_partkey": "p_partkey"})
        .join(t.suppliers_of(t.nations_of("EUROPE")), on={"ps_suppkey": "s_suppkey"})
        .with_columns(least="min(ps_supplycost) OVER (PARTITION BY ps_partkey)")
        .filter("ps_supplycost = least")
        .select("s_acctbal, s_name, n_name, ps_partkey AS p_partkey, p_mfgr, s_address, s_phone, s_comment")
        .sort(["s_acctbal DESC", "n_name", "s_name", "p_partkey"])
        .limit(100)
    )


def q03(t: Tables) -> DataFrame:
    """Shipping priority."""
    customers = t.customer.filter("c_mktsegment = 'BUILDING'")
    orders = t.orders.filter("o_orderdate < DATE '1995-03-15'").join(
        customers, on={"o_custkey": "c_custkey"}, how="semi"
    )
    return (
        t.lineitem.filter("l_shipdate > DATE '1995-03-15'")
        .join(orders, on={"l_orderkey": "o_orderkey"})
        .group_by("l_orderkey", "o_orderdate", "o_shippriority")
        .agg(revenue=REVENUE)
        .select("l_orderkey", "revenue", "o_orderdate", "o_shippriority")
        .sort(["revenue DESC", "o_orderdate"])
        .limit(10)
    )


def q04(t: Tables) -> DataFrame:
    """Order priority checking."""
    return (
        t.orders.filter("o_orderdate >= DATE '1993-07-01' AND o_orderdate < DATE '1993-10-01'")
        .join(t.lineitem.filter("l_commitdate < l_receiptdate"), on={"o_orderkey": "l_orderkey"}, how="semi")
        .group_by("o_orderpriority")
        .agg(order_count="count(*)")
        .sort("o_orderpriority")
    )


def q05(t: Tables) -> DataFrame:
    """Local supplier volume."""
    orders = t.orders.filter("o_orderdate >= DATE '1994-01-01' AND o_orderdate < DATE '1995-01-01'")
    asian = t.suppliers_of(t.nations_of("ASIA"))
    local = t.customer.join(t.nations_of("ASIA"), on={"c_nationkey": "n_nationkey"}, how="semi")
    return (
        t.lineitem.join(orders.join(local, on={"o_custkey": "c_custkey"}), on={"l_orderkey": "o_orderkey"})
        .join(asian, on={"l_suppkey": "s_suppkey", "c_nationkey": "s_nationkey"})
        .group_by("n_name")
        .agg(revenue=REVENUE)
        .sort("revenue DESC")
    )


def q06(t: Tables) -> DataFrame:
    """Forecasting revenue change."""
    return t.lineitem.filter(
        "l_shipdate >= DATE '1994-01-01' AND l_shipdate < DATE '1995-01-01' "
        "AND l_discount BETWEEN 0.05 AND 0.07 AND l_quantity < 24"
    ).agg(revenue="sum(l_extendedprice * l_discount)")


def q07(t: Tables) -> DataFrame:
    """Volume shipping."""
    both = t.nation.filter("n_name IN ('FRANCE', 'GERMANY')")
    suppliers = t.suppliers_of(both).select("s_suppkey", "n_name AS supp_nation")
    customers = t.customer.join(both, on={"c_nationkey": "n_nationkey"}).select("c_custkey", "n_name AS cust_nation")
    return (
        t.lineitem.filter("l_shipdate BETWEEN DATE '1995-01-01' AND DATE '1996-12-31'")
        .join(suppliers, on={"l_suppkey": "s_suppkey"})
        .join(t.orders.join(customers, on={"o_custkey": "c_custkey"}), on={"l_orderkey": "o_orderkey"})
        .filter("supp_nation <> cust_nation")
        .group_by("supp_nation", "cust_nation", l_year="year(l_shipdate)")
        .agg(revenue=REVENUE)
        .sort(["supp_nation", "cust_nation", "l_year"])
    )


def q08(t: Tables) -> DataFrame:
    """National market share."""
    parts = t.part.filter("p_type = 'ECONOMY ANODIZED STEEL'")
    orders = t.orders.filter("o_orderdate BETWEEN DATE '1995-01-01' AND DATE '1996-12-31'")
    american = t.customer.join(t.nations_of("AMERICA"), on={"c_nationkey": "n_nationkey"}, how="semi")
    return (
        t.lineitem.join(parts, on={"l_partkey": "p_partkey"}, how="semi")
        .join(orders, on={"l_orderkey": "o_orderkey"})
        .join(american, on={"o_custkey": "c_custkey"}, how="semi")
        .join(t.suppliers_of(t.nation), on={"l_suppkey": "s_suppkey"})
        .select("year(o_orderdate) AS o_year, l_extendedprice * (1 - l_discount) AS volume, n_name AS nation")
        .group_by("o_year")
        .agg(mkt_share="sum(CASE WHEN nation = 'BRAZIL' THEN volume ELSE 0 END) / sum(volume)")
        .sort("o_year")
    )


def q09(t: Tables) -> DataFrame:
    """Product type profit measure."""
    parts = t.part.filter("p_name LIKE '%green%'")
    return (
        t.lineitem.join(parts, on={"l_partkey": "p_partkey"}, how="semi")
        .join(t.partsupp, on={"l_partkey": "ps_partkey", "l_suppkey": "ps_suppkey"})
        .join(t.suppliers_of(t.nation), on={"l_suppkey": "s_suppkey"})
        .join(t.orders, on={"l_orderkey": "o_orderkey"})
        .group_by(nation="n_name", o_year="year(o_orderdate)")
        .agg(sum_profit="sum(l_extendedprice * (1 - l_discount) - ps_supplycost * l_quantity)")
        .sort(["nation", "o_year DESC"])
    )


def q10(t: Tables) -> DataFrame:
    """Returned item reporting."""
    orders = t.orders.filter("o_orderdate >= DATE '1993-10-01' AND o_orderdate < DATE '1994-01-01'")
    revenues = (
        t.lineitem.filter("l_returnflag = 'R'")
        .join(orders, on={"l_orderkey": "o_orderkey"})
        .group_by("o_custkey")
        .agg(revenue=REVENUE)
        .sort("revenue DESC")
        .limit(20)
    )
    return (
        t.customer.join(revenues, on={"c_custkey": "o_custkey"})
        .join(t.nation, on={"c_nationkey": "n_nationkey"})
        .select("c_custkey, c_name, revenue, c_acctbal, n_name, c_address, c_phone, c_comment")
        .sort("revenue DESC")
    )


def q11(t: Tables) -> DataFrame:
    """Important stock identification."""
    german = t.suppliers_of(t.nation.filter("n_name = 'GERMANY'"))
    stock = t.partsupp.join(german, on={"ps_suppkey": "s_suppkey"}, how="semi").select(
        "ps_partkey, ps_supplycost * ps_availqty AS value"
    )
    return (
        stock.group_by("ps_partkey")
        .agg(value="sum(value)")
        .join(stock.agg(total="sum(value)"), how="cross")
        .filter(f"value > total * {0.0001 / t.scale:.10f}")
        .select("ps_partkey", "value")
        .sort("value DESC")
    )


def q12(t: Tables) -> DataFrame:
    """Shipping modes and order priority."""
    lines = t.lineitem.filter(
        "l_shipmode IN ('MAIL', 'SHIP') AND l_commitdate < l_receiptdate AND l_shipdate < l_commitdate "
        "AND l_receiptdate >= DATE '1994-01-01' AND l_receiptdate < DATE '1995-01-01'"
    )
    return (
        t.orders.join(lines, on={"o_orderkey": "l_orderkey"})
        .with_columns(is_high="o_orderpriority IN ('1-URGENT', '2-HIGH')")
        .group_by("l_shipmode")
        .agg(high_line_count="count(*) FILTER (WHERE is_high)", low_line_count="count(*) FILTER (WHERE NOT is_high)")
        .sort("l_shipmode")
    )


def q13(t: Tables) -> DataFrame:
    """Customer distribution."""
    orders = t.orders.filter("o_comment NOT LIKE '%special%requests%'")
    return (
        t.customer.join(orders, on={"c_custkey": "o_custkey"}, how="left")
        .group_by("c_custkey")
        .agg(c_count="count(o_orderkey)")
        .group_by("c_count")
        .agg(custdist="count(*)")
        .sort(["custdist DESC", "c_count DESC"])
    )


def q14(t: Tables) -> DataFrame:
    """Promotion effect."""
    return (
        t.lineitem.filter("l_shipdate >= DATE '1995-09-01' AND l_shipdate < DATE '1995-10-01'")
        .join(t.part, on={"l_partkey": "p_partkey"})
        .select("p_type, l_extendedprice * (1 - l_discount) AS revenue")
        .agg(promo_revenue="100.00 * sum(CASE WHEN p_type LIKE 'PROMO%' THEN revenue ELSE 0 END) / sum(revenue)")
    )


def q15(t: Tables) -> DataFrame:
    """Top supplier."""
    revenue = (
        t.lineitem.filter("l_shipdate >= DATE '1996-01-01' AND l_shipdate < DATE '1996-04-01'")
        .group_by("l_suppkey")
        .agg(total_revenue=REVENUE)
    )
    return (
        t.supplier.join(revenue, on={"s_suppkey": "l_suppkey"})
        .join(revenue.agg(most="max(total_revenue)"), how="cross")
        .filter("total_revenue = most")
        .select("s_suppkey", "s_name", "s_address", "s_phone", "total_revenue")
        .sort("s_suppkey")
    )


def q16(t: Tables) -> DataFrame:
    """Parts/supplier relationship."""
    parts = t.part.filter(
        "p_brand <> 'Brand#45' AND p_type NOT LIKE 'MEDIUM POLISHED%' AND p_size IN (49, 14, 23, 45, 19, 3, 36, 9)"
    )
    complained_about = t.supplier.filter("s_comment LIKE '%Customer%Complaints%'")
    return (
        t.partsupp.join(parts, on={"ps_partkey": "p_partkey"})
        .join(complained_about, on={"ps_suppkey": "s_suppkey"}, how="anti")
        .group_by("p_brand", "p_type", "p_size")
        .agg(supplier_cnt="count(DISTINCT ps_suppkey)")
        .sort(["supplier_cnt DESC", "p_brand", "p_type", "p_size"])
    )


def q17(t: Tables) -> DataFrame:
    """Small-quantity-order revenue."""
    parts = t.part.filter("p_brand = 'Brand#23' AND p_container = 'MED BOX'")
    return (
        t.lineitem.join(parts, on={"l_partkey": "p_partkey"}, how="semi")
        .with_columns(few="0.2 * avg(l_quantity) OVER (PARTITION BY l_partkey)")
        .filter("l_quantity < few")
        .agg(avg_yearly="sum(l_extendedprice) / 7.0")
    )


def q18(t: Tables) -> DataFrame:
    """Large volume customer."""
    large = t.lineitem.group_by("l_orderkey").agg(sum_qty="sum(l_quantity)").filter("sum_qty > 300")
    return (
        t.orders.join(large, on={"o_orderkey": "l_orderkey"})
        .join(t.customer, on={"o_custkey": "c_custkey"})
        .select("c_name", "o_custkey AS c_custkey", "o_orderkey", "o_orderdate", "o_totalprice", "sum_qty")
        .sort(["o_totalprice DESC", "o_orderdate"])
        .limit(100)
    )


def q19(t: Tables) -> DataFrame:
    """Discounted revenue."""
    lines = t.lineitem.filter("l_shipmode IN ('AIR', 'AIR REG') AND l_shipinstruct = 'DELIVER IN PERSON'")
    parts = t.part.filter("p_brand IN ('Brand#12', 'Brand#23', 'Brand#34') AND p_size >= 1")
    return (
        lines.join(parts, on={"l_partkey": "p_partkey"})
        .filter(
            "(p_brand = 'Brand#12' AND p_container IN ('SM CASE', 'SM BOX', 'SM PACK', 'SM PKG') "
            "AND l_quantity BETWEEN 1 AND 11 AND p_size <= 5) OR "
            "(p_brand = 'Brand#23' AND p_container IN ('MED BAG', 'MED BOX', 'MED PKG', 'MED PACK') "
            "AND l_quantity BETWEEN 10 AND 20 AND p_size <= 10) OR "
            "(p_brand = 'Brand#34' AND p_container IN ('LG CASE', 'LG BOX', 'LG PACK', 'LG PKG') "
            "AND l_quantity BETWEEN 20 AND 30 AND p_size <= 15)"
        )
        .agg(revenue=REVENUE)
    )


def q20(t: Tables) -> DataFrame:
    """Potential part promotion."""
    offers = t.partsupp.join(t.part.filter("p_name LIKE 'forest%'"), on={"ps_partkey": "p_partkey"}, how="semi")
    keys = {"l_partkey": "ps_partkey", "l_suppkey": "ps_suppkey"}
    shipped = (
        t.lineitem.filter("l_shipdate >= DATE '1994-01-01' AND l_shipdate < DATE '1995-01-01'")
        .join(offers, on=keys, how="semi")
        .group_by("l_partkey", "l_suppkey")
        .agg(half="0.5 * sum(l_quantity)")
    )
    in_excess = shipped.join(offers, on=keys).filter("ps_availqty > half")
    return (
        t.suppliers_of(t.nation.filter("n_name = 'CANADA'"))
        .join(in_excess, on={"s_suppkey": "l_suppkey"}, how="semi")
        .select("s_name", "s_address")
        .sort("s_name")
    )


def q21(t: Tables) -> DataFrame:
    """Suppliers who kept orders waiting."""
    saudi = t.suppliers_of(t.nation.filter("n_name = 'SAUDI ARABIA'")).select("s_suppkey", "s_name")
    waiting = (
        t.lineitem.filter(LATE)
        .join(saudi, on={"l_suppkey": "s_suppkey"})
        .join(t.orders.filter("o_orderstatus = 'F'"), on={"l_orderkey": "o_orderkey"}, how="semi")
        .select("l_orderkey", "s_name")
    )
    only_one_late = (
        t.lineitem.join(waiting, on="l_orderkey", how="semi")
        .group_by("l_orderkey")
        .agg(
            suppliers="count(DISTINCT l_suppkey)",
            late_suppliers=f"count(DISTINCT l_suppkey) FILTER (WHERE {LATE})",
        )
        .filter("suppliers > 1 AND late_suppliers = 1")
    )
    return (
        waiting.join(only_one_late, on="l_orderkey", how="semi")
        .group_by("s_name")
        .agg(numwait="count(*)")
        .sort(["numwait DESC", "s_name"])
        .limit(100)
    )


def q22(t: Tables) -> DataFrame:
    """Global sales opportunity."""
    customers = t.customer.with_columns(cntrycode="substring(c_phone, 1, 2)").filter(
        "cntrycode IN ('13', '31', '23', '29', '30', '18', '17') AND c_acctbal > 0"
    )
    return (
        customers.join(customers.agg(mean="avg(c_acctbal)"), how="cross")
        .filter("c_acctbal > mean")
        .join(t.orders, on={"c_custkey": "o_custkey"}, how="anti")
        .group_by("cntrycode")
        .agg(numcust="count(*)", totacctbal="sum(c_acctbal)")
        .sort("cntrycode")
    )


QUERIES: dict[str, Callable[[Tables], DataFrame]] = {
    query.__name__: query
    for query in (
        *(q01, q02, q03, q04, q05, q06, q07, q08, q09, q10, q11),
        *(q12, q13, q14, q15, q16, q17, q18, q19, q20, q21, q22),
    )
}
