"""Members of enumerations, and one method, under the names by which the documents call them."""

from cache_dit.caching.block_adapters import BlockAdapterRegister, ForwardPattern
from cache_dit.caching.config import CacheType

NONE = CacheType.NONE
DBCache = CacheType.DBCache
DBPrune = CacheType.DBPrune

get_adapter = BlockAdapterRegister.get_adapter

Pattern_0 = ForwardPattern.Pattern_0
Pattern_1 = ForwardPattern.Pattern_1
Pattern_2 = ForwardPattern.Pattern_2
Pattern_3 = ForwardPattern.Pattern_3
Pattern_4 = ForwardPattern.Pattern_4
Pattern_5 = ForwardPattern.Pattern_5
